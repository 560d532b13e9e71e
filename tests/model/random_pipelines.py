"""Pipelines of diffusers of transformers, reduced and with random weights: they tell that the arithmetic is right."""

import math
from pathlib import Path

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "a an the of and wheat field ocean forest dark marsh lava snow bright blurry sky mountain river".split()


def tokenizer(length: int = 512) -> transformers.PreTrainedTokenizerFast:
    """Words, an end token, padding at the end."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        padding_side="right",
    )


def strong(model: torch.nn.Module, gain: float = 1.0) -> torch.nn.Module:
    """With weights of such a size that prompts differ in the picture; norms with weights of their own."""
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0, gain / math.sqrt(parameter[0].numel()))
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.1)
    return model.eval()


def autoencoder(channels: int = 16) -> diffusers.AutoencoderKL:
    # A random decoder is almost flat: stretched, so that a difference in the latent is one in the picture.
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.1,
        scaling_factor=0.4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 20
    return vae.eval()


def wan(width: int = 96, blocks: int = 2, **parts) -> "diffusers.WanPipeline":
    torch.manual_seed(0)
    config = transformers.UMT5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    strong(vae, 1.5)
    pipe = diffusers.WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=strong(transformers.UMT5EncoderModel(config), 2.0),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=strong(
            diffusers.WanTransformer3DModel(
                num_attention_heads=width // 24,
                attention_head_dim=24,
                text_dim=32,
                freq_dim=32,
                ffn_dim=2 * width,
                num_layers=blocks,
            )
        ),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prx(width: int = 64, blocks: int = 2) -> "diffusers.PRXPipeline":
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
    }
    config = T5GemmaConfig(encoder=T5GemmaModuleConfig(**sizes), decoder=T5GemmaModuleConfig(**sizes))
    pipe = diffusers.PRXPipeline(
        transformer=strong(
            diffusers.PRXTransformer2DModel(
                context_in_dim=32, hidden_size=width, num_heads=width // 16, depth=blocks, axes_dim=[8, 8]
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=strong(T5GemmaEncoder(config.encoder), 2.0),
        tokenizer=tokenizer(64),
        vae=autoencoder(),
        default_sample_size=256,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.whole_text_config = config
    return pipe


def save(pipe: "diffusers.DiffusionPipeline", folder: Path) -> None:
    """As published: PRX's text encoder with the configuration of the encoder and decoder that it was part of."""
    pipe.save_pretrained(folder)
    if hasattr(pipe, "whole_text_config"):
        pipe.whole_text_config.save_pretrained(folder / "text_encoder")


def clip(width: int, kind: type = transformers.CLIPTextModel) -> torch.nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=width, bos_token_id=0, eos_token_id=1, max_position_embeddings=77,
    )  # fmt: skip
    return strong(kind(config))


def t5(width: int = 32) -> torch.nn.Module:
    config = transformers.T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return strong(transformers.T5EncoderModel(config), 2.0)


def flux_transformer(width: int = 64, blocks: int = 2) -> "diffusers.FluxTransformer2DModel":
    return strong(
        diffusers.FluxTransformer2DModel(
            in_channels=64,
            num_layers=blocks,
            num_single_layers=blocks,
            attention_head_dim=16,
            num_attention_heads=width // 16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
    )


def flux() -> "diffusers.FluxPipeline":
    torch.manual_seed(0)
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(),
        text_encoder=clip(32),
        tokenizer=tokenizer(77),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=flux_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3_transformer(width: int = 64, blocks: int = 3) -> "diffusers.SD3Transformer2DModel":
    """Of 3.5: keys and queries under a norm, and the first block's image attends to itself a second time."""
    return strong(
        diffusers.SD3Transformer2DModel(
            sample_size=32,
            num_layers=blocks,
            attention_head_dim=16,
            num_attention_heads=width // 16,
            joint_attention_dim=32,
            caption_projection_dim=width,
            pooled_projection_dim=32,
            pos_embed_max_size=32,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        )  # fmt: skip
    )


def sd3() -> "diffusers.StableDiffusion3Pipeline":
    torch.manual_seed(0)
    projected = transformers.CLIPTextModelWithProjection
    pipe = diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=clip(16, projected),
        tokenizer=tokenizer(77),
        text_encoder_2=clip(16, projected),
        tokenizer_2=tokenizer(77),
        text_encoder_3=t5(),
        tokenizer_3=tokenizer(),
        transformer=sd3_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_transformer(width: int = 64, blocks: int = 2) -> "diffusers.QwenImageTransformer2DModel":
    return strong(
        diffusers.QwenImageTransformer2DModel(
            num_layers=blocks,
            attention_head_dim=16,
            num_attention_heads=width // 16,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
    )


def qwen() -> "diffusers.QwenImagePipeline":
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen2_5_VLConfig(text_config=sizes, vision_config=vision)
    vae = diffusers.AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=strong(vae, 1.5),
        text_encoder=strong(transformers.Qwen2_5_VLForConditionalGeneration(config), 2.0),
        tokenizer=tokenizer(2048),
        transformer=qwen_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


CHAT = (
    "{% for message in messages %}{{ message.role }} "
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %} "
    "{% endfor %}"
)


def chatting(length: int = 512) -> transformers.PreTrainedTokenizerFast:
    """The same words, in a conversation."""
    made = tokenizer(length)
    made.chat_template = CHAT
    return made


def flux2_transformer(
    width: int = 64, blocks: int = 1, text: int = 96, **options
) -> "diffusers.Flux2Transformer2DModel":
    return strong(
        diffusers.Flux2Transformer2DModel(
            in_channels=64,
            num_layers=blocks,
            num_single_layers=blocks,
            attention_head_dim=16,
            num_attention_heads=width // 16,
            joint_attention_dim=text,
            axes_dims_rope=(4, 4, 4, 4),
            **options,
        )
    )


def flux2_autoencoder() -> "diffusers.AutoencoderKLFlux2":
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), latent_channels=16, norm_num_groups=4, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 20
    return vae.eval()


def flux2() -> "diffusers.Flux2Pipeline":
    """Of its text encoder the 10th, 20th and 30th layer are read."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 30, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 4, "model_type": "mistral",
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
        "model_type": "pixtral",
    }  # fmt: skip
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    pipe = diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=strong(transformers.Mistral3ForConditionalGeneration(config), 1.5),
        tokenizer=chatting(),
        transformer=flux2_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen3(layers: int) -> torch.nn.Module:
    config = transformers.Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8,
    )  # fmt: skip
    return strong(transformers.Qwen3ForCausalLM(config), 0.7)


def klein() -> "diffusers.Flux2KleinPipeline":
    torch.manual_seed(0)
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=qwen3(28),
        tokenizer=chatting(),
        transformer=flux2_transformer(guidance_embeds=False),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def zimage_transformer(blocks: int = 2) -> "diffusers.ZImageTransformer2DModel":
    return strong(
        diffusers.ZImageTransformer2DModel(
            dim=64, n_layers=blocks, n_refiner_layers=1, n_heads=4, n_kv_heads=4, cap_feat_dim=32, axes_dims=[4, 6, 6]
        )
    )


def zimage() -> "diffusers.ZImagePipeline":
    torch.manual_seed(0)
    pipe = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=qwen3(2).model,
        tokenizer=chatting(),
        transformer=zimage_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lumina2_transformer(blocks: int = 2) -> "diffusers.Lumina2Transformer2DModel":
    """Fewer keys than queries, as published."""
    return strong(
        diffusers.Lumina2Transformer2DModel(
            sample_size=32,
            hidden_size=64,
            num_layers=blocks,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            cap_feat_dim=32,
        )
    )


def lumina2() -> "diffusers.Lumina2Pipeline":
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, query_pre_attn_scalar=8,
    )  # fmt: skip
    pipe = diffusers.Lumina2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=strong(transformers.Gemma2Model(config)),
        tokenizer=tokenizer(),
        transformer=lumina2_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
