"""Images with one soft mask per noun, kept in tar shards that any WebDataset tool can read.

A store is a folder::

    store.json               what made it, and its shards with their sizes and checksums
    shard-000000.tar         the samples: KEY.json, KEY.masks.png, KEY.jpg (or KEY.png)
    shard-000000.index.npy   where each member stands in the tar, one row a sample
    shard-000000.json        the shard's size, counts and checksums; written last

Read it with `Store`, write it with `StoreWriter` or `write_store`, check it
with `verify_store`, repair it with `repair_store`.
"""

from freeatm_mm.store.errors import StoreError
from freeatm_mm.store.layout import read_manifest
from freeatm_mm.store.reader import Store
from freeatm_mm.store.repair import RepairReport, repair_store
from freeatm_mm.store.sample import (
    RawSample,
    Sample,
    decode_masks,
    decode_sample,
    encode_image,
    encode_masks,
    encode_sample,
)
from freeatm_mm.store.transfer import pull_store, push_store
from freeatm_mm.store.verify import Problem, SampleSource, verify_store
from freeatm_mm.store.webdataset import masks_per_noun
from freeatm_mm.store.writer import StoreWriter, write_store

__all__ = [
    'Problem',
    'RawSample',
    'RepairReport',
    'Sample',
    'SampleSource',
    'Store',
    'StoreError',
    'StoreWriter',
    'decode_masks',
    'decode_sample',
    'encode_image',
    'encode_masks',
    'encode_sample',
    'masks_per_noun',
    'pull_store',
    'push_store',
    'read_manifest',
    'repair_store',
    'verify_store',
    'write_store',
]
