"""Pipelines of diffusers that have no row, and why.

`tests/attention/test_coverage.py` fails on a class of diffusers that takes prompts and has neither
a row nor a reason.
"""

from __future__ import annotations

__all__ = ['NOT_COVERED']

_VIDEO = 'it generates videos, and masks are made for single images'
_SOUND = 'it generates sound'
_TEXT = 'it generates text'
_SHAPE = 'it generates shapes in three dimensions'
_EMBEDDINGS = 'it makes embeddings for another pipeline, which generates images: record that one'

_CANVAS = (
    'it generates beside a second image on a canvas twice as wide, of which its maps would show '
    'both halves, and takes one prompt a call'
)
_EDITS = 'it changes images that are given with an instruction, and no family describes it yet'
_SEVERAL_TEXTS = 'it changes an image by several texts, each with passes or a batch of its own'
_GRID = 'it generates a grid of images, of which its maps would show all'
_WOVEN = (
    'its control network is woven into its U-Net and attends to the text, too: use the ControlNet '
    'pipelines'
)
_OLD = 'diffusers maintains it no longer, and no family describes it'
_NOT_PYTORCH = 'it generates without PyTorch, so that no attention is seen'
_SAMPLERS = 'its samplers call the network as often a step as they like'

_KINDS: dict[str, str] = {
    _VIDEO: 'AllegroPipeline AnimateDiffControlNetPipeline AnimateDiffPAGPipeline '
    'AnimateDiffPipeline AnimateDiffSDXLPipeline AnimateDiffSparseControlNetPipeline '
    'AnimateDiffVideoToVideoControlNetPipeline AnimateDiffVideoToVideoPipeline '
    'AnyFlowFARPipeline AnyFlowPipeline ChronoEditPipeline '
    'CogVideoXFunControlPipeline CogVideoXImageToVideoPipeline CogVideoXPipeline '
    'CogVideoXVideoToVideoPipeline ConsisIDPipeline Cosmos2VideoToWorldPipeline '
    'Cosmos2_5_PredictBasePipeline Cosmos2_5_TransferPipeline '
    'CosmosTextToWorldPipeline CosmosVideoToWorldPipeline EasyAnimateControlPipeline '
    'EasyAnimateInpaintPipeline EasyAnimatePipeline HeliosPipeline '
    'HeliosPyramidPipeline HunyuanSkyreelsImageToVideoPipeline '
    'HunyuanVideo15ImageToVideoPipeline HunyuanVideo15Pipeline '
    'HunyuanVideoFramepackPipeline HunyuanVideoImageToVideoPipeline '
    'HunyuanVideoPipeline I2VGenXLPipeline Kandinsky5I2VPipeline '
    'Kandinsky5T2VPipeline Kandinsky6TI2VAPipeline LTX2ConditionPipeline '
    'LTX2DFRPipeline LTX2DFRTemporalRefinePipeline LTX2HDRPipeline '
    'LTX2ImageToVideoPipeline LTX2InContextPipeline LTX2Pipeline LTXConditionPipeline '
    'LTXI2VLongMultiPromptPipeline LTXImageToVideoPipeline LTXPipeline LattePipeline '
    'LucyEditPipeline MochiPipeline MotifVideoImage2VideoPipeline MotifVideoPipeline '
    'PIAPipeline SanaImageToVideoPipeline SanaVideoPipeline SanaWMPipeline '
    'SkyReelsV2DiffusionForcingImageToVideoPipeline '
    'SkyReelsV2DiffusionForcingPipeline '
    'SkyReelsV2DiffusionForcingVideoToVideoPipeline SkyReelsV2ImageToVideoPipeline '
    'SkyReelsV2Pipeline TextToVideoSDPipeline TextToVideoZeroPipeline '
    'TextToVideoZeroSDXLPipeline VideoToVideoSDPipeline WanAnimatePipeline '
    'WanImageToVideoPipeline WanVACEPipeline WanVideoToVideoPipeline',
    _SOUND: 'AceStepPipeline AudioLDM2Pipeline AudioLDMPipeline LongCatAudioDiTPipeline '
    'MusicLDMPipeline StableAudio3AudioToAudioPipeline StableAudio3InpaintPipeline '
    'StableAudio3Pipeline StableAudioPipeline',
    _TEXT: 'DiffusionGemmaPipeline LLaDA2Pipeline',
    _SHAPE: 'ShapEPipeline',
    _EMBEDDINGS: 'FluxPriorReduxPipeline KandinskyPriorPipeline KandinskyV22PriorEmb2EmbPipeline '
    'KandinskyV22PriorPipeline',
    _CANVAS: 'DreamLiteMobilePipeline DreamLitePipeline',
    _EDITS: 'BriaFiboEditPipeline JoyImageEditPipeline JoyImageEditPlusPipeline '
    'Kandinsky5I2IPipeline LongCatImageEditPipeline',
    _SEVERAL_TEXTS: 'CycleDiffusionPipeline LEditsPPPipelineStableDiffusion '
    'LEditsPPPipelineStableDiffusionXL StableDiffusionDiffEditPipeline '
    'StableDiffusionPix2PixZeroPipeline',
    _WOVEN: 'StableDiffusionControlNetXSPipeline StableDiffusionXLControlNetXSPipeline',
    _OLD: 'AltDiffusionImg2ImgPipeline AltDiffusionPipeline BlipDiffusionControlNetPipeline '
    'BlipDiffusionPipeline UniDiffuserPipeline VersatileDiffusionDualGuidedPipeline '
    'VersatileDiffusionPipeline VersatileDiffusionTextToImagePipeline',
    _NOT_PYTORCH: 'FlaxStableDiffusionControlNetPipeline FlaxStableDiffusionImg2ImgPipeline '
    'FlaxStableDiffusionInpaintPipeline FlaxStableDiffusionPipeline '
    'FlaxStableDiffusionXLPipeline OnnxStableDiffusionImg2ImgPipeline '
    'OnnxStableDiffusionInpaintPipeline OnnxStableDiffusionInpaintPipelineLegacy '
    'OnnxStableDiffusionPipeline OnnxStableDiffusionUpscalePipeline '
    'StableDiffusionOnnxPipeline',
    _SAMPLERS: 'StableDiffusionKDiffusionPipeline StableDiffusionXLKDiffusionPipeline',
}
"""Reasons, and the classes that each is true of."""

NOT_COVERED: dict[str, str] = {
    **{name: reason for reason, names in _KINDS.items() for name in names.split()},
    'BriaFibo2Pipeline': "its text is read by Qwen3-VL together with images, some of each block's "
    'own, and no family describes it yet',
    'Cosmos3OmniPipeline': 'one network reads the text and generates, with videos, sound and '
    'actions in the same sequence',
    'Flux2KleinKVPipeline': 'it keeps the keys of images to go by from the first step on: use '
    'Flux2KleinPipeline with the same weights',
    'HunyuanImageRefinerPipeline': 'it refines images of HunyuanImagePipeline: record that one',
    'OmniGenPipeline': 'one network reads the text and generates, with text and images mixed in a '
    'sequence whose order depends on the prompt',
    'ModularPipeline': 'its blocks may be put together in any way, so that what they are called '
    'with is not known: take the pipeline class of the same weights',
    'QwenImageLayeredPipeline': 'it splits an image into layers, which no nouns name',
    'StableDiffusionAttendAndExcitePipeline': 'it calls its network several times at a noise level '
    'and changes its latents by the gradients of its attention',
    'StableDiffusionInpaintPipelineLegacy': 'diffusers maintains it no longer: use '
    'StableDiffusionInpaintPipeline',
    'StableDiffusionPanoramaPipeline': 'it generates in windows that overlap, each with a map of '
    'its own',
    'StableDiffusionParadigmsPipeline': 'it computes several steps at once, in one batch',
    'VQDiffusionPipeline': 'it generates tokens of a codebook, and diffusers maintains it no '
    'longer',
    'VisualClozePipeline': _GRID,
    'VisualClozeGenerationPipeline': _GRID,
}
"""Names of pipeline classes, and why they give no masks."""
