"""The text of a config, which goes into each checkpoint."""

from mmengine.config import Config

from freeatm_mm.compat import format_configs_once


def test_a_config_is_laid_out_again_only_if_it_changed(monkeypatch):
    calls = []

    def lay_out(cfg):
        calls.append(cfg)
        return original(cfg)

    original = Config.pretty_text.fget
    cfg = Config(dict(model=dict(type='Some', channels=[1, 2])))
    expected = cfg.pretty_text
    monkeypatch.setattr(Config, 'pretty_text', property(lay_out))
    format_configs_once()
    format_configs_once()
    assert [cfg.pretty_text for _ in range(3)] == [expected] * 3 and len(calls) == 1
    cfg.model.channels = [3]
    assert cfg.pretty_text == original(cfg) != expected
    assert len(calls) == 2
