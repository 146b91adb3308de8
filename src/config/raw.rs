//! The configuration as it is written: every key optional, nothing checked but the types.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Declares a structure of optional keys that refuses unknown ones.
macro_rules! raw {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $(
                #[doc = concat!("The key `", stringify!($field), "`; absent and `null` mean the default.")]
                $(#[$attribute])*
                pub $field: Option<$type>,
            )*
        }
    };
}

raw! {
    /// The keys of `data_args`.
    RawDataArgs {
        train_csv_path: String,
        val_csv_path: String,
        test_csv_path: String,
        cogvlm: bool,
        random_portion_train: f64,
        rank_portion_train: f64,
        lmdb_dirs: Vec<String>,
        lmdb_dirs_val: Vec<String>,
    }
}

raw! {
    /// The keys of `columns`.
    RawColumns {
        id: String,
        image: String,
        caption: String,
    }
}

raw! {
    /// The keys of `image_tokenizer`.
    RawImageTokenizer {
        kind: String,
        components: i64,
        codes: i64,
        fit_images: i64,
        path: String,
    }
}

raw! {
    /// The keys of `text_encoder`.
    RawTextEncoder {
        kind: String,
        tokens: i64,
        channels: i64,
        path: String,
    }
}

raw! {
    /// Every key of the file, the released ones first, in the order of the released file.
    RawConfig {
        data_args: RawDataArgs,
        precomputed_latent: bool,
        precomputed_rootdir: String,
        using_webtar: bool,
        using_csv: bool,
        reward_thre: f64,
        vfast: i64,
        tfast: i64,
        depth: i64,
        #[serde(rename = "raterDepth")]
        rater_depth: i64,
        upperlevel_weight: f64,
        upperlevel_weight_decay: f64,
        ini: f64,
        hd: f64,
        aln: f64,
        alng: f64,
        fp16: i64,
        tblr: f64,
        tlr: f64,
        twd: f64,
        twde: f64,
        tclip: f64,
        ls: f64,
        data_path: String,
        text_enc: String,
        text_enc_path: String,
        ckpt_path: String,
        local_out_dir_path: String,
        exp_name: String,
        pretrained_ckpt: String,
        #[serde(rename = "warmupVAR")]
        warmup_var: String,
        bs: i64,
        batch_size: i64,
        glb_batch_size: i64,
        ac: i64,
        ep: i64,
        wp: f64,
        wp0: f64,
        wpe: f64,
        sche: String,
        opt: String,
        afuse: bool,
        saln: bool,
        anorm: bool,
        fuse: bool,
        pn: String,
        patch_size: i64,
        patch_nums: Vec<i64>,
        resos: Vec<i64>,
        data_load_reso: i64,
        mid_reso: f64,
        drop_scale_length: i64,
        classifier_free_training_prob: f64,
        hflip: bool,
        workers: i64,
        pg: f64,
        pg0: i64,
        pgwp: f64,
        tf32: bool,
        device: String,
        default_label: i64,
        seed: i64,
        same_seed_for_all_ranks: i64,
        cfg: f64,
        instance_prompt: Value,
        val_it: i64,
        print_every: i64,
        infer_bsz: i64,
        enable_cross: bool,
        rope_emb: bool,
        lvl_emb: bool,
        rope_norm: f64,
        rope_theta: f64,
        logit_norm: bool,
        enable_discard: bool,
        enable_discard_low: bool,
        enable_discard_aesthetic: bool,
        from_scratch: bool,
        from_0: bool,
        enable_fig_val: bool,
        score_head_gelu: bool,
        rater_reg: bool,
        #[serde(rename = "fixVar")]
        fix_var: bool,
        compat: Value,
        rater_temperature: f64,
        rule: String,
        rule_geometry: String,
        rule_scaling: String,
        rater_teaching: String,
        proxy_warmup_epochs: i64,
        average_from_epoch: i64,
        rater_only_epochs: i64,
        record_every: i64,
        record_norms: bool,
        proxy_width: i64,
        rater_width: i64,
        image_tokenizer: RawImageTokenizer,
        text_encoder: RawTextEncoder,
        columns: RawColumns,
        skip_bad_rows: bool,
        validation_portion: f64,
        max_pixels: i64,
        truncated_images: bool,
        token_cache: String,
        recompute: bool,
        cuda_graph: bool,
        checkpoint_every: i64,
        keep_checkpoints: i64,
    }
}
