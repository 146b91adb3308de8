//! Which parameters weight decay applies to (released: `filter_params` in `utils/lr_control.py`; upstream.md, C2).

/// A name that holds any of these is never decayed.
const NEVER: [&str; 14] = [
    "cls_token",
    "start_token",
    "task_token",
    "cfg_uncond",
    "pos_embed",
    "pos_1LC",
    "pos_start",
    "start_pos",
    "lvl_embed",
    "gamma",
    "beta",
    "ada_gss",
    "moe_bias",
    "scale_mul",
];

/// Whether weight decay applies: not to vectors, biases, and tables of positions, levels and scales.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    shape.len() != 1 && !name.ends_with("bias") && !NEVER.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_leaves_out_vectors_biases_and_tables() {
        for (name, shape) in [
            ("pos_start", &[1, 1, 128][..]),
            ("word_embed.bias", &[128]),
            ("lvl_embed.weight", &[4, 128]),
            ("blocks.0.attn.scale_mul_1H11", &[1, 2, 1, 1]),
            ("blocks.0.ada_gss", &[1, 1, 6, 128]),
        ] {
            assert!(!decays(name, shape), "{name}");
        }
        for name in ["class_emb.weight", "head_batch.fc.2.weight", "blocks.1.cross_attn.mat_kv.weight"] {
            assert!(decays(name, &[128, 128]), "{name}");
        }
    }
}
