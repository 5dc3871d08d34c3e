"""The encoder's own attention instead of masks, as AttMask, arXiv 2203.12719, the rest alike.

Free-ATM's growing share of the hidden patches, chosen by the attention that the class token pays
them. AttMask has a distilling teacher for it, MAE the encoder itself.

python tools/train.py configs/miniature/peers/mae_own_attention.py --data-root STORE
"""

_base_ = '../mae_freeatm.py'

train_dataloader = dict(dataset=dict(masks=False))
model = dict(guide=dict(type='OwnAttentionGuide'))
