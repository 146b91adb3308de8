//! The table of keys: the only declaration of a key.
//!
//! It generates the structs that a file is parsed into, the defaults and ranges that the checks use, the fingerprint,
//! the tables of `docs/config.md` and `configs/schema.json`. An entry reads `field: type = default, allowed values,
//! how it is honored, effect;` below its description. The order is that of the effective configuration, and
//! fingerprints depend on it: the upstream keys first, in the order of the released file.

use super::{
    declare::keys,
    field::{
        AllOff,
        Allowed::{Above, Any, AtLeast, Between, Items, Multiples, NotEmpty, OneOf, SuchAs, Within},
        ConfigKey,
        DefaultValue::{Depends, Is, Null},
        Effect, Field, Files, Flag, Honored,
        Honored::{NoEffect, Only, Yes},
        Integer, Integers, KeyType, Kind, Number, Setting, Switches, Text, Texts,
    },
};
use crate::{
    config::{
        HEAD_WIDTH,
        rules::{Geometry, NAMES, RaterObjective, Scaling},
    },
    data::corpus::CorpusFormat,
};

const LMDB: Honored = Only("`[]`: use a CSV");
const CSV_ONLY: Honored = NoEffect("used by the LMDB and tar readers only");
const IMAGES: Honored =
    NoEffect("the released code uses it for sample images only, which `train` does not write");
const FIT: Honored = Only("by `fit`; `train` refuses it");
const CPU: Honored = NoEffect("the CPU computes in f32");
const HEAD: i64 = HEAD_WIDTH as i64;

keys! {
    keys {
        /// path of the JSON Schema of this file, `configs/schema.json`
        #[serde(skip_serializing)]
        schema as "$schema": Text = Null, Any, NoEffect("for editors"), Harmless;
    }

    /// The keys of `data_args`.
    group data_args: RawDataArgs, DataArgsKeys {
        /// corpus of the training set; a relative path is relative to the current directory
        train_csv_path: Text = Is(""), Any, Yes, Harmless;
        /// corpus of the validation set; empty: hold out `validation_portion`
        val_csv_path: Text = Is(""), Any, Yes, Harmless;
        /// CSV of a test set
        test_csv_path: Text = Is(""),
            Any, NoEffect("the released training reads it and never uses it"), Harmless;
        /// captions are in the column `cogvlm_caption` instead of `caption`
        cogvlm: Flag = Is(false), Any, Yes, Results;
        /// share of the training set to use, sampled by `seed`
        random_portion_train: Number = Null, Above(0.0, 1.0), Yes, Results;
        /// share of the training set to use, from the top of the file
        rank_portion_train: Number = Null, Above(0.0, 1.0), Yes, Results;
        /// LMDB folders of the training set
        lmdb_dirs: Texts = Is(&[]), OneOf(&[&[]]), LMDB, Harmless;
        /// LMDB folders of the validation set
        lmdb_dirs_val: Texts = Is(&[]), OneOf(&[&[]]), LMDB, Harmless;
    }

    keys {
        /// read precomputed features and text embeddings from files
        precomputed_latent: Flag = Is(false), OneOf(&[false]), Only("`false`"), Results;
        /// folder of those files
        precomputed_rootdir: Text = Is(""), Any, NoEffect("`precomputed_latent` must be false"), Harmless;
        /// read tar shards
        using_webtar: Flag = Is(false), OneOf(&[false]), Only("`false`"), Results;
        /// read a CSV
        using_csv: Flag = Is(true), OneOf(&[true]), Only("`true`"), Results;
        /// quality threshold
        reward_thre: Number = Is(0.0), Any, CSV_ONLY, Harmless;
        /// compile the tokenizer
        vfast: Integer = Is(0), Between(0, 3), NoEffect("concerns PyTorch's compiler"), Harmless;
        /// compile the networks
        tfast: Integer = Is(0), Between(0, 3), NoEffect("concerns PyTorch's compiler"), Harmless;
        /// blocks of the proxy
        depth: Integer = Is(30), Between(1, 128), Yes, Results;
        /// blocks of the rater
        rater_depth as "raterDepth": Integer = Is(8), Between(1, 128), Yes, Results;
        /// share of the validation loss in the proxy's loss; the weighted training loss has the rest
        upperlevel_weight: Number = Is(1.0), Between(0.0, 1.0), Yes, Results;
        /// decrease of `upperlevel_weight` per epoch, down to 0
        upperlevel_weight_decay: Number = Is(0.03), Between(0.0, 1.0), Yes, Results;
        /// standard deviation of the initial weights; negative: sqrt(1 / (3 width))
        ini: Number = Is(-1.0), Between(-1.0, 10.0), Yes, Results;
        /// factor on the initial weights of the proxy's head
        hd: Number = Is(0.02), Between(0.0, 100.0), Yes, Results;
        /// factor on the initial scales and shifts of the adaptive layer norm (with `saln`)
        aln: Number = Is(0.5), Between(0.0, 100.0), Yes, Results;
        /// factor on the initial gates of the adaptive layer norm (with `saln`)
        alng: Number = Is(5e-5), Between(0.0, 100.0), Yes, Results;
        /// dtype of the activations on a GPU: 0: f32, 1: f16 with loss scaling, 2: bf16; the CPU always computes
        /// in f32
        fp16: Integer = Is(2), Between(0, 2), Yes, Results;
        /// base learning rate, from which `tlr` is computed if it is null: ac · tblr · batch / 5120
        tblr: Number = Is(1e-4), Between(0.0, 10.0), Yes, Results;
        /// peak learning rate of both networks
        tlr: Number = Depends("from `tblr`"), Between(0.0, 10.0), Yes, Results;
        /// initial weight decay of both networks
        twd: Number = Is(0.05), Between(0.0, 10.0), Yes, Results;
        /// final weight decay; 0: constant
        twde: Number = Depends("`twd`"), Between(0.0, 10.0), Yes, Results;
        /// gradient clipping: largest norm per network; 0: none
        tclip: Number = Is(2.0), Between(0.0, 1e9), Yes, Results;
        /// label smoothing
        ls: Number = Is(0.0), Between(0.0, 0.99), Yes, Results;
        /// folder of ImageNet
        data_path: Text = Is(""), Any, NoEffect("the released code never reads it"), Harmless;
        /// released text encoder, `clip` or `t5`, if `text_enc_path` or `text_encoder.path` gives its folder; without
        /// a folder, `text_encoder.kind` decides
        text_enc: Text = Depends("`clip` if `text_enc_path` is given, as upstream"),
            OneOf(&["clip", "t5"]), Yes, Results;
        /// folder of the released text encoder (for CLIP, of the pipeline); stored as `text_encoder.path`
        text_enc_path: Text = Is(""), Any, Yes, Results;
        /// weights of the released image tokenizer, a file or the folder of `vae_ch160v4096z32.pth`; the same as
        /// `image_tokenizer.path` with the kind `vqvae`
        ckpt_path: Text = Is(""), Any, Yes, Harmless;
        /// run directory, if `--out` is not given
        local_out_dir_path: Text = Is(""), Any, Yes, Harmless;
        /// name of the run, recorded in its provenance
        exp_name: Text = Is(""), Any, Yes, Harmless;
        /// initial weights of the proxy (and of the rater, if the file has them) or of the model of `fit`: a released
        /// checkpoint, or a .pth or safetensors file of the proxy
        pretrained_ckpt: Text = Is(""), Any, Yes, Results;
        /// the same as `pretrained_ckpt`
        warmup_var as "warmupVAR": Text = Is(""), Any, Yes, Results;
        /// samples per update, before rounding to `ac` equal batches
        bs: Integer = Is(64), Between(1, 1 << 20), Yes, Results;
        /// samples per batch, `bs / ac` rounded
        batch_size: Integer = Depends("as 0"), Any, Only("0, or the value from `bs` and `ac`"), Results;
        /// samples per batch over all processes
        glb_batch_size: Integer = Depends("as 0"),
            Any, Only("0, or the value from `bs` and `ac`"), Results;
        /// gradient accumulation: batches per update
        ac: Integer = Is(1), Between(1, 65_536), Yes, Results;
        /// epochs
        ep: Integer = Is(10), Between(1, 1_000_000), Yes, Results;
        /// warm-up epochs; 0: `ep` / 50
        wp: Number = Depends("as 0"), Within(0.0, 1e6, "at most `ep`"), Yes, Results;
        /// learning rate at the start of the warm-up, relative to `tlr`
        wp0: Number = Is(0.005), Between(0.0, 1.0), Yes, Results;
        /// final learning rate, relative to `tlr`
        wpe: Number = Is(0.01), Within(0.0, 1.0, "1e-12 or more if `sche` is `exp`"), Yes, Results;
        /// learning-rate schedule: `lin0`, `lin`, `lin00`, `lin<share>` (such as `lin0.3`), `cos`, `exp`
        sche: Text = Is("lin0"), SuchAs(&["lin0", "lin", "lin00", "lin0.3", "cos", "exp"]), Yes, Results;
        /// optimizer: `adamw`, or `adam`, which means the same in the released code
        opt: Text = Is("adamw"), OneOf(&["adamw", "adam"]), Yes, Results;
        /// fused optimizer
        afuse: Flag = Is(true), Any, NoEffect("concerns CUDA"), Harmless;
        /// adaptive layer norm: modulate the norms by the level, shared by all blocks
        saln: Flag = Is(false), Any, Yes, Results;
        /// L2-normalize queries and keys, with a learned scale per head
        anorm: Flag = Is(true), Any, Yes, Results;
        /// fused attention
        fuse: Flag = Is(true), Any, NoEffect("concerns CUDA"), Harmless;
        /// sides of the token maps, separated by `_`; `256`, `512` and `1024` are the released pyramids
        pn: Text = Depends("from `patch_nums`, else the released pyramid for 256 pixels"),
            SuchAs(&["256", "512", "1024", "1_2_3_4"]), Yes, Results;
        /// side of a patch in pixels
        patch_size: Integer = Is(16), Between(1, 256), Yes, Results;
        /// sides of the token maps, the same as `pn`; the last times `patch_size` is the image side
        patch_nums: Integers = Depends("from `pn`"),
            Items { least: 1, most: 256, shortest: 2, longest: 64 }, Yes, Results;
        /// image sides of the scales
        resos: Integers = Depends("`patch_nums` · `patch_size`"),
            Any, Only("null, or `patch_nums` · `patch_size`"), Results;
        /// image side
        data_load_reso: Integer = Depends("the last of `patch_nums` · `patch_size`"),
            Any, Only("null, or the last of `patch_nums` · `patch_size`"), Results;
        /// side before random cropping
        mid_reso: Number = Is(1.125),
            Any, NoEffect("the released CSV reader never crops at random"), Harmless;
        /// tokens per sample that a step of `fit` trains on; the others are dropped at random from the finest scale;
        /// null: all
        drop_scale_length: Integer = Null, Between(1, 1 << 24), FIT, Results;
        /// share of captions replaced by the empty one, for classifier-free guidance
        classifier_free_training_prob: Number = Is(0.1), Between(0.0, 1.0), Yes, Results;
        /// mirror images at random
        hflip: Flag = Is(false), OneOf(&[false]), Only("`false`: each image is tokenized once"), Results;
        /// threads that decode images
        workers: Integer = Is(3), Between(0, 1024), Yes, Harmless;
        /// progressive training: share of the run after which `fit` trains on all scales, with finer ones added
        /// gradually before; 0: all scales from the start; sets `sche`
        pg: Number = Is(0.0), Between(0.0, 0.99), FIT, Results;
        /// index of the newest scale at the start of progressive training
        pg0: Integer = Is(4), Between(0, 64), FIT, Results;
        /// epochs over which the loss weight of a new scale rises to 1; 0: `ep` / 300
        pgwp: Number = Is(0.0), AtLeast(0.0), FIT, Results;
        /// TensorFloat-32
        // A device might support it later.
        tf32: Flag = Is(true), Any, CPU, Results;
        /// `cpu`, `cuda` (the first GPU), `cuda:N`, `emulated` (the GPU's kernels on the CPU) or `auto`
        device: Text = Is("cpu"), SuchAs(&["cpu", "cuda", "cuda:1", "emulated", "auto"]), Yes, Harmless;
        /// class label
        default_label: Integer = Is(1000),
            Any, NoEffect("the networks are conditioned on text only"), Harmless;
        /// seed of all random streams; null: 0
        seed: Integer = Is(0), AtLeast(0), Yes, Results;
        /// added to the seed of the sampler
        same_seed_for_all_ranks: Integer = Is(0), Between(0, u32::MAX as i64), Yes, Results;
        /// guidance scale
        cfg: Number = Is(4.0), Any, IMAGES, Harmless;
        /// file of prompts
        instance_prompt: Files = Null, Any, IMAGES, Harmless;
        /// batches between checkpoints within an epoch, if `checkpoint_every` is null
        val_it: Integer = Is(10_000), AtLeast(1), Yes, Harmless;
        /// largest number of log lines per epoch
        print_every: Integer = Is(500), AtLeast(1), Yes, Harmless;
        /// images generated at once
        infer_bsz: Integer = Is(16), AtLeast(1), IMAGES, Harmless;
        /// cross-attention to the caption
        enable_cross: Flag = Is(true), Any, Yes, Results;
        /// rotary position embedding (RoPE)
        rope_emb: Flag = Is(true), Any, Yes, Results;
        /// add a learned embedding per scale
        lvl_emb: Flag = Is(true), Any, Yes, Results;
        /// length to which the positions of each scale are stretched
        rope_norm: Number = Is(64.0), Between(1e-6, 1e6), Yes, Results;
        /// base of the rotary frequencies
        rope_theta: Number = Is(10_000.0), Between(1.0, 1e12), Yes, Results;
        /// layer norm before the proxy's logits
        logit_norm: Flag = Is(true), Any, Yes, Results;
        /// exclude listed images
        enable_discard: Flag = Is(true), Any, CSV_ONLY, Harmless;
        /// exclude images of low quality
        enable_discard_low: Flag = Is(true), Any, CSV_ONLY, Harmless;
        /// exclude plain images
        enable_discard_aesthetic: Flag = Is(true), Any, CSV_ONLY, Harmless;
        /// false: initialize the cross-attention projections to 0
        from_scratch: Flag = Is(true), Any, Yes, Results;
        /// resume the weights but count epochs from 0
        from_0: Flag = Is(false), OneOf(&[false]), Only("`false`: a run resumes completely"), Results;
        /// write sample images
        enable_fig_val: Flag = Is(true), Any, NoEffect("the released code never reads it"), Harmless;
        /// activation of the score head
        score_head_gelu: Flag = Is(false), Any, NoEffect("the released code ignores it"), Harmless;
        /// add the upstream entropy term to the rater's loss
        rater_reg: Flag = Is(false), Any, Yes, Results;
        /// freeze the proxy
        fix_var as "fixVar": Flag = Is(false), Any, Yes, Results;
        /// `default`, `released`, or an object of the switches below
        compat: Switches = Is(AllOff), Any, Yes, Results;
        /// temperature that divides the rater's logits before the softmax over a batch; at 1 the weights soon
        /// concentrate on one sample per batch
        rater_temperature: Number = Is(10.0), Between(1e-6, 1e6), Yes, Results;
        /// the signal of a training sample, the constant c_i: {rules}; see docs/rules.md
        rule: Text =
            Depends(
                "`norm-gain`, but `loss` under `compat.loss_rule` or `compat.cross_attention_first_sample`, and `excess` under \
                 `compat.validation_epoch`",
            ),
            OneOf(&NAMES), Yes, Results;
        /// geometry of the inner products under {rules with products} (no other rule uses inner products): `sgd`:
        /// the validation gradient; `adamw`: the step that AdamW would take along it
        rule_geometry: Text =
            Depends("`adamw` under {rules in adamw}, else `sgd`"),
            OneOf(Geometry::NAMES), Yes, Results;
        /// scaling of a batch's constants before the rater's update: `none`, `center` or `standardize`
        rule_scaling: Text = Is("none"), OneOf(Scaling::NAMES), Yes, Results;
        /// `reweight`: the rater descends the weighted sum of the constants, and the proxy is trained with its
        /// weights; `regression`: the rater is fitted to each sample's running average, and the proxy is trained with
        /// equal weights
        rater_objective: Text = Depends("`reweight` under the rule {rules by weights}, else `regression`"),
            OneOf(RaterObjective::NAMES), Yes, Results;
        /// epochs at the start in which the proxy is trained on the training samples alone and the rater is not
        /// trained (eq. 4)
        proxy_warmup_epochs: Integer = Depends("1 under {rules with a reference} if `ep` is 2 or more, else 0"),
            Within(0, 999_999, "less than `ep`"), Yes, Results;
        /// first epoch, counted from 0, whose constants enter the running averages
        average_from_epoch: Integer = Depends("`proxy_warmup_epochs`, but 1 or more if `ep` is 2 or more"),
            Within(0, 999_999, "less than `ep`"), Yes, Results;
        /// epochs after those of `ep` in which only the rater is trained, on averages that no longer change
        rater_only_epochs: Integer =
            Depends("4 if `rater_objective` is `regression`, else 0"),
            Between(0, 100_000), Yes, Results;
        /// epochs between two recordings of each sample's loss, gradient norm, inner product and logit (`dynamics/`
        /// in the run directory, figure 3); 0: never
        record_every: Integer = Is(1), AtLeast(0), Yes, Results;
        /// measure the norm of each sample's gradient in the recorded epochs
        record_norms: Flag =
            Depends("true, but false under the rule {rules without norms}, under \
                     `compat.cross_attention_first_sample`, and if `record_every` is 0"),
            Any, Yes, Results;
        /// channels of the proxy, a multiple of 64; one head per 64 channels
        proxy_width: Integer = Depends("64 · `depth`"), Multiples(HEAD, 256 * HEAD), Yes, Results;
        /// channels of the rater, a multiple of 64
        rater_width: Integer = Depends("64 · `raterDepth`"), Multiples(HEAD, 256 * HEAD), Yes, Results;
    }

    /// The keys of `crossfit`.
    group crossfit: RawCrossfit, CrossfitKeys {
        /// under the rule {rules with a caption gain}, folds of the training set: the proxy of a fold is trained on the
        /// others and evaluates the captions of the fold
        folds: Integer = Is(2), Between(2, 64), Yes, Results;
        /// epochs of each proxy, at most
        epochs: Integer = Is(24), Between(1, 1_000_000), Yes, Results;
        /// early stopping: epochs without a lower loss on the records set aside (5%, at least a batch, at most a fifth)
        /// after which a proxy's training stops; the weights of its best epoch are used
        patience: Integer = Is(4), Between(1, 1_000_000), Yes, Results;
        /// other captions that a caption is compared with
        captions: Integer = Is(8), Between(1, 255), Yes, Results;
    }

    /// The keys of `image_tokenizer`.
    group image_tokenizer: RawImageTokenizer, ImageTokenizerKeys {
        /// `pca`: principal components of patches, quantized by k-means; `vqvae`: the released VQ-VAE with its
        /// weights
        kind: Text = Depends("`vqvae` if `ckpt_path` is given, else `pca`"),
            OneOf(&["pca", "vqvae"]), Yes, Results;
        /// principal components, which are the channels of a code
        components: Integer = Depends("32, or the values of a patch if fewer"),
            Within(1, 3 * 256 * 256, "at most 3 · `patch_size`²"), Yes, Results;
        /// codes in the vocabulary
        codes: Integer = Is(4096), Between(2, 65_536), Yes, Results;
        /// largest number of training images to fit the tokenizer on
        fit_images: Integer = Is(4096), Between(1, 1_000_000), Yes, Results;
        /// `pca`: folder of a fitted tokenizer to use instead of fitting one; `vqvae`: its weights
        path: Text = Is(""), Any, Yes, Harmless;
    }

    /// The keys of `text_encoder`.
    group text_encoder: RawTextEncoder, TextEncoderKeys {
        /// `hashed_words`: a fixed random vector per word; `clip`, `t5`: the released encoders, from a Hugging Face
        /// folder
        kind: Text = Depends("from `text_enc` if a folder is given, else `hashed_words`"),
            OneOf(&["hashed_words", "clip", "t5"]), Yes, Results;
        /// tokens per caption, padded or truncated
        tokens: Integer = Depends("77; for `clip` from its folder, for `t5` 120"),
            Within(1, 4096, "2 or more for `clip` and `t5`"), Yes, Results;
        /// channels of a token's vector
        channels: Integer = Depends("1024; for `clip` and `t5` from the folder"),
            Between(1, 16_384), Yes, Results;
        /// folder of the `clip` or `t5` encoder, which a run does not copy (set this if the folder has moved), or of a
        /// saved encoder to use instead of making one
        path: Text = Is(""), Any, Yes, Harmless;
    }

    /// The keys of `columns`.
    group columns: RawColumns, ColumnsKeys {
        /// column of the ids; `id` also matches other common names, see above
        id: Text = Is("id"), NotEmpty, Yes, ResultsAsGroup;
        /// column of the image paths, relative to the CSV's folder; `image_save_path` also matches other common names,
        /// see above
        image: Text = Is("image_save_path"), NotEmpty, Yes, ResultsAsGroup;
        /// column of the captions; `caption` also matches other common names, see above
        caption: Text = Depends("from `data_args.cogvlm`"), NotEmpty, Yes, ResultsAsGroup;
    }

    keys {
        /// format of the training and the validation set; empty: detected by content
        data_format: Text = Is(""), OneOf(&CorpusFormat::KEYS), Yes, Harmless;
        /// count a malformed row (unbalanced quotes, wrong number of fields, invalid UTF-8, no id) as a failed record
        /// instead of ending the job
        skip_bad_rows: Flag = Is(false), Any, Yes, Results;
        /// share of the training set held out for validation if there is no `val_csv_path`, at least one batch (in
        /// `compare`, two); null: 0.05, in `compare` 0.2
        validation_portion: Number = Null, Above(0.0, 0.9), Yes, Results;
        /// largest number of pixels of an image; larger ones are refused before they are decoded
        max_pixels: Integer = Is(89_478_485), Between(1, 1 << 40), Yes, Results;
        /// decode truncated images as far as their data goes and fill the rest with gray or black, like Pillow's
        /// `LOAD_TRUNCATED_IMAGES`; false: refuse them
        truncated_images: Flag = Is(false), Any, Yes, Results;
        /// token cache written by `encode`: tokens and text embeddings are read from it; samples that are not in it are
        /// encoded
        token_cache: Text = Is(""), Any, Yes, Harmless;
        /// gradient checkpointing: keep only each block's input and recompute the block in the backward pass; less
        /// memory, more time
        recompute: Flag = Is(false), Any, Yes, Harmless;
        /// on a GPU, record a step as a graph and replay it with one launch (same bits, less time); false: launch
        /// kernels one by one
        cuda_graph: Flag = Is(true), Any, Yes, Harmless;
        /// updates between checkpoints, in addition to those at the end of an epoch; null: `val_it` batches
        checkpoint_every: Integer = Null, AtLeast(1), Yes, Harmless;
        /// newest checkpoints to keep; 0: all
        keep_checkpoints: Integer = Is(3), Between(0, 1_000_000), Yes, Harmless;
    }
}
