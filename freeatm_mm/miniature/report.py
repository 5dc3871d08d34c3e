"""What is reported of the miniature generator, from its evaluation's figures."""

from __future__ import annotations

from typing import Any

from freeatm_mm.errors import counted

__all__ = ['generator_facts', 'generator_report']


def generator_facts(results: dict[str, Any]) -> dict[str, str]:
    """Return the main figures in words, for a page that uses the generator's images."""
    masks = results['masks']['all']
    controls = masks['controls']
    found = (
        f'{results["generated"]["found"]:.1%} (real scenes {results["real"]["found"]:.1%}, '
        f'chance {results["generated"]["chance"]:.1%})'
    )
    overlap = (
        f"{masks['iou']:.3f} (another noun's mask {controls['other_noun']['iou']:.3f}, "
        f'centred box {controls["centred_box"]:.3f}, whole image {controls["whole_image"]:.3f})'
    )
    return {
        'Prompted nouns found by a classifier trained on real scenes': found,
        'Masks on noised real scenes, mean IoU with the exact ones': overlap,
    }


def generator_report(results: dict[str, Any]) -> str:
    """Turn the figures that `tools/miniature/evaluate_generator.py` gathers into Markdown."""
    generated, real = results['generated'], results['real']
    lines = [
        '# The miniature generator, evaluated',
        '',
        f'`{results["command"]}`',
        '',
        f'{results["date"]}, {results["hardware"]}; {counted(results["images"], "image")}, '
        f'{counted(results["steps"], "step")}, guidance {results["guidance"]}.',
        '',
        '## Are the prompted nouns in the images?',
        '',
        'A classifier trained on real training scenes ranks the nouns; a noun counts as found if '
        'it is among the K highest of an image whose prompt names K.',
        '',
        '| images | all nouns | one noun | two | three |',
        '| --- | --- | --- | --- | --- |',
    ]
    for name, found in (
        ('generated', generated),
        ('real scenes, through the autoencoder', results['reconstructed']),
        ('real scenes', real),
    ):
        # keys are strings once the file has been through JSON
        by_count = {int(count): share for count, share in found['found_by_count'].items()}
        lines.append(
            f'| {name} | {found["found"]:.1%} | '
            + ' | '.join(
                f'{by_count[count]:.1%}' if count in by_count else '-' for count in (1, 2, 3)
            )
            + ' |'
        )
    lines += [
        f'| chance | {generated["chance"]:.1%} | | | |',
        '',
        'By noun, generated (real): '
        + ', '.join(
            f'{noun} {share:.0%} ({real["found_by_noun"].get(noun, float("nan")):.0%})'
            for noun, share in sorted(generated['found_by_noun'].items(), key=lambda item: -item[1])
        )
        + '.',
        '',
        '## Are the masks where the objects are?',
        '',
        'Attention recorded on noised real scenes, averaged over ten timesteps, against the '
        'exact masks: mean IoU over nouns at threshold 0.45 (and at the best threshold).',
        '',
        "| scenes | resolution | own mask | best threshold | other noun's mask "
        '| centred box | whole image | pointing |',
        '| --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for scenes, key in (
        ('objects seen in training', 'masks'),
        ('objects never seen', 'masks_unseen_objects'),
    ):
        for resolution, score in results[key].items():
            controls = score['controls']
            lines.append(
                f'| {scenes} | {resolution} | {score["iou"]:.3f} | {score["best_iou"]:.3f} at '
                f'{score["best_threshold"]:.2f} | {controls["other_noun"]["iou"]:.3f} | '
                f'{controls["centred_box"]:.3f} | {controls["whole_image"]:.3f} | '
                f'{score["pointing"]:.1%} |'
            )
    return '\n'.join(lines) + '\n'
