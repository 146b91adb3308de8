//! Every key with its meaning and how it is honoured: the source of `docs/config.md` and of the list of known names.

use serde_json::Value;

use super::{Compat, Config, rules::described};
use crate::error::Result;

/// How a key is honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Honoured {
    /// It works.
    Yes,
    /// Only the values named are accepted; others are refused, because they would change results.
    Only(&'static str),
    /// Accepted, with no effect here; the reason.
    NoEffect(&'static str),
}

use Honoured::{NoEffect, Only, Yes};

/// One key of the configuration file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The name, dotted when nested.
    pub name: &'static str,
    /// What it means, with its unit. Names of rules in braces stand for those of the table.
    pub meaning: &'static str,
    /// How it is honoured.
    pub honoured: Honoured,
}

const fn key(name: &'static str, meaning: &'static str, honoured: Honoured) -> Key {
    Key { name, meaning, honoured }
}

const LMDB: Honoured = Only("`[]`: read a CSV instead");
const CSV_ONLY: Honoured = NoEffect("belongs to the LMDB and tar readers");
const PICTURES: Honoured =
    NoEffect("the released code uses it for sample pictures only, which `train` does not draw");
const FIT: Honoured = Only("by `fit`; `train` refuses it");
const CPU: Honoured = NoEffect("numbers are 32-bit floats on the CPU");

/// Every key but the switches of `compat`, in the order of the file.
pub const KEYS: &[Key] = &[
    key(
        "data_args.train_csv_path",
        "CSV of the training set; relative paths start at the current directory",
        Yes,
    ),
    key("data_args.val_csv_path", "CSV of the validation set; empty: hold out `validation_portion`", Yes),
    key(
        "data_args.test_csv_path",
        "CSV of a test set",
        NoEffect("the released training reads it and never uses it"),
    ),
    key("data_args.cogvlm", "captions stand in the column `cogvlm_caption`, not `caption`", Yes),
    key("data_args.random_portion_train", "share of the training set to use, drawn by `seed`", Yes),
    key("data_args.rank_portion_train", "share of the training set to use, from the top of the file", Yes),
    key("data_args.lmdb_dirs", "LMDB folders of the training set", LMDB),
    key("data_args.lmdb_dirs_val", "LMDB folders of the validation set", LMDB),
    key("precomputed_latent", "read features and text states from files", Only("`false`")),
    key("precomputed_rootdir", "folder of those files", NoEffect("`precomputed_latent` must be false")),
    key("using_webtar", "read tar shards", Only("`false`")),
    key("using_csv", "read a CSV", Only("`true`")),
    key("reward_thre", "quality threshold", CSV_ONLY),
    key("vfast", "compile the tokenizer", NoEffect("concerns PyTorch's compiler")),
    key("tfast", "compile the networks", NoEffect("concerns PyTorch's compiler")),
    key("depth", "blocks of the proxy", Yes),
    key("raterDepth", "blocks of the rater", Yes),
    key(
        "upperlevel_weight",
        "share of the validation loss in the proxy's loss; the weighted training loss has the rest",
        Yes,
    ),
    key(
        "upperlevel_weight_decay",
        "taken off `upperlevel_weight` at every epoch but the first, down to 0",
        Yes,
    ),
    key("ini", "standard deviation of initial weights; negative: sqrt(1 / (3 width))", Yes),
    key("hd", "factor on the initial weight of the proxy's head", Yes),
    key("aln", "factor on initial modulation scales and shifts (with `saln`)", Yes),
    key("alng", "factor on initial modulation gates (with `saln`)", Yes),
    key(
        "fp16",
        "activations on a device: 0: 32-bit floats, 1: half with scaled losses, 2: bfloat16; the CPU always computes in 32-bit floats",
        Yes,
    ),
    key("tblr", "base learning rate, from which `tlr` comes when it is null: ac · tblr · batch / 5120", Yes),
    key("tlr", "peak learning rate of both networks", Yes),
    key("twd", "weight decay of both networks at the start", Yes),
    key("twde", "weight decay at the end; 0: as at the start", Yes),
    key("tclip", "largest gradient norm, for each network; 0: no clipping", Yes),
    key("ls", "label smoothing", Yes),
    key("data_path", "folder of ImageNet", NoEffect("the released code never reads it")),
    key(
        "text_enc",
        "released text encoder, `clip` or `t5`, where a folder is given by `text_enc_path` or `text_encoder.path`; without one, `text_encoder.kind` decides",
        Yes,
    ),
    key(
        "text_enc_path",
        "folder of the released text encoder, for CLIP that of the pipeline; it becomes `text_encoder.path`",
        Yes,
    ),
    key(
        "ckpt_path",
        "weights of the released image tokenizer, a file or the folder of `vae_ch160v4096z32.pth`; the same as `image_tokenizer.path` with the kind `vqvae`",
        Yes,
    ),
    key("local_out_dir_path", "run directory, where `--out` is not given", Yes),
    key("exp_name", "name of the run, recorded in its provenance", Yes),
    key(
        "pretrained_ckpt",
        "weights that the proxy (and the rater, if they are there), or the model of `fit`, starts from: a released checkpoint, or a .pth or safetensors file of the proxy's",
        Yes,
    ),
    key("warmupVAR", "the same", Yes),
    key("bs", "samples of an update, before rounding to `ac` equal batches", Yes),
    key(
        "batch_size",
        "samples of one batch, `bs / ac` rounded",
        Only("0, or what follows from `bs` and `ac`"),
    ),
    key("glb_batch_size", "the same over all processes", Only("0, or what follows from `bs` and `ac`")),
    key("ac", "batches whose gradients make one update", Yes),
    key("ep", "epochs", Yes),
    key("wp", "epochs of warm-up; 0: `ep` / 50", Yes),
    key("wp0", "learning rate at the start of the warm-up, over `tlr`", Yes),
    key("wpe", "learning rate at the end, over `tlr`", Yes),
    key(
        "sche",
        "learning-rate schedule: `lin0`, `lin`, `lin00`, `lin<share>` (such as `lin0.3`), `cos`, `exp`",
        Yes,
    ),
    key("opt", "optimiser: `adamw`, or `adam`, which means the same in the released code", Yes),
    key("afuse", "fused optimiser", NoEffect("concerns CUDA")),
    key("saln", "modulate the norms by the level, shared over blocks", Yes),
    key("anorm", "normalise queries and keys and learn a scale a head", Yes),
    key("fuse", "fused attention", NoEffect("concerns CUDA")),
    key(
        "pn",
        "sides of the token maps, joined by `_`; `256`, `512` and `1024` stand for the released pyramids",
        Yes,
    ),
    key("patch_size", "pixels of a patch's side", Yes),
    key(
        "patch_nums",
        "sides of the token maps, the same as `pn`; the last times `patch_size` is the picture's side",
        Yes,
    ),
    key("resos", "picture sides of the scales", Only("null, or `patch_nums` · `patch_size`")),
    key("data_load_reso", "picture side", Only("null, or the last of `patch_nums` · `patch_size`")),
    key("mid_reso", "side before random cropping", NoEffect("the released CSV reader never crops at random")),
    key(
        "drop_scale_length",
        "tokens of a sample that a step of `fit` trains on, the others being dropped at random from the finest scale; null: all",
        FIT,
    ),
    key("classifier_free_training_prob", "share of captions replaced by the empty one, for guidance", Yes),
    key("hflip", "mirror pictures at random", Only("`false`: each picture is tokenised once")),
    key("workers", "threads that decode pictures", Yes),
    key(
        "pg",
        "progressive training: the share of the run after which `fit` trains on all scales, finer ones being added on the way; 0: on all from the start; sets `sche`",
        FIT,
    ),
    key("pg0", "the newest scale at the start of progressive training, counted from 0", FIT),
    key("pgwp", "epochs in which a new scale's tokens come to count in full; 0: `ep` / 300", FIT),
    key("tf32", "TensorFloat-32", CPU),
    key(
        "device",
        "`cpu`, `cuda` (the first GPU), `cuda:N`, `emulated` (the GPU's kernels on the CPU) or `auto`",
        Yes,
    ),
    key("default_label", "class label", NoEffect("the networks are conditioned on text only")),
    key("seed", "fixes every random number; null: 0", Yes),
    key("same_seed_for_all_ranks", "added to the seed of the sampler", Yes),
    key("cfg", "guidance scale", PICTURES),
    key("instance_prompt", "file of prompts", PICTURES),
    key("val_it", "batches between checkpoints within an epoch, where `checkpoint_every` is null", Yes),
    key("print_every", "log lines an epoch, at most", Yes),
    key("infer_bsz", "pictures drawn at once", PICTURES),
    key("enable_cross", "cross-attention to the caption", Yes),
    key("rope_emb", "rotary positions", Yes),
    key("lvl_emb", "a learned vector a scale", Yes),
    key("rope_norm", "length that each scale's positions are stretched to", Yes),
    key("rope_theta", "base of the rotary frequencies", Yes),
    key("logit_norm", "layer norm before the proxy's logits", Yes),
    key("enable_discard", "leave out listed pictures", CSV_ONLY),
    key("enable_discard_low", "leave out pictures of low quality", CSV_ONLY),
    key("enable_discard_aesthetic", "leave out plain pictures", CSV_ONLY),
    key("from_scratch", "false: cross-attention projections start at 0", Yes),
    key("from_0", "resume weights but count epochs from 0", Only("`false`: a run resumes whole")),
    key("enable_fig_val", "draw sample pictures", NoEffect("the released code never reads it")),
    key("score_head_gelu", "activation of the score head", NoEffect("the released code ignores it")),
    key("rater_reg", "add the released entropy term to the rater's loss", Yes),
    key("fixVar", "do not train the proxy", Yes),
    key("compat", "`default`, `released`, or an object of the switches below", Yes),
    key(
        "rater_temperature",
        "divides the rater's logits before the softmax over a batch; at 1 the weights soon stand on one sample of a batch",
        Yes,
    ),
    key(
        "rule",
        "what a training sample is taken to be worth: {rules}; docs/rules.md says more; null: `excess`, but `loss` under `compat.loss_rule` or `compat.cross_attention_first_sample`",
        Yes,
    ),
    key(
        "rule_geometry",
        "what the samples' gradients are multiplied with under {rules with products} (no other rule forms inner products): `sgd`: the validation gradient; `adamw`: the step that AdamW would take along it; null: `adamw` under {rules in adamw}, else `sgd`",
        Yes,
    ),
    key(
        "rule_scaling",
        "what is done to a batch's constants before the rater sees them: `none`, `centre` or `standardise`",
        Yes,
    ),
    key(
        "rater_teaching",
        "`weights`: the rater descends the weighted sum of the constants, and the proxy is trained with its weights; `regression`: it learns each sample's running average, and the proxy is trained with equal weights; null: `weights` under the rule {rules by weights}, else `regression`",
        Yes,
    ),
    key(
        "proxy_warmup_epochs",
        "epochs at the start in which the proxy learns from the training samples alone and the rater not at all (eq. 4); null: 1 under {rules with a reference} where `ep` is 2 or more, else 0",
        Yes,
    ),
    key(
        "average_from_epoch",
        "first epoch, counted from 0, that counts in the samples' running averages; null: `proxy_warmup_epochs`, but 1 or more where `ep` is 2 or more",
        Yes,
    ),
    key(
        "rater_only_epochs",
        "epochs after those of `ep` in which the rater alone learns the samples' averages, which do not change any more; null: 4 with `rater_teaching` `regression`, else 0, as without averages there is nothing to learn from",
        Yes,
    ),
    key(
        "record_every",
        "epochs between two recordings of each sample's loss, gradient norm, inner product and logit (`dynamics/` in the run directory, figure 3); 0: never",
        Yes,
    ),
    key(
        "record_norms",
        "measure the norm of each sample's gradient in the recorded epochs; null: true, but false under the rule {rules of the loss alone}, under `compat.cross_attention_first_sample`, and where `record_every` is 0",
        Yes,
    ),
    key(
        "proxy_width",
        "channels of the proxy, a multiple of 64; null: 64 · `depth`; one head every 64 channels",
        Yes,
    ),
    key("rater_width", "channels of the rater, a multiple of 64; null: 64 · `raterDepth`", Yes),
    key(
        "image_tokenizer.kind",
        "`pca`: principal components of patches, quantised by k-means; `vqvae`: the released one, by its weights",
        Yes,
    ),
    key("image_tokenizer.components", "principal components, the channels of a code", Yes),
    key("image_tokenizer.codes", "codes in the vocabulary", Yes),
    key("image_tokenizer.fit_images", "training pictures that the tokenizer is fitted on, at most", Yes),
    key(
        "image_tokenizer.path",
        "`pca`: folder of a fitted tokenizer to use instead of fitting one; `vqvae`: its weights",
        Yes,
    ),
    key(
        "text_encoder.kind",
        "`hashed_words`: a fixed random vector for every word; `clip`, `t5`: the released encoders, from a Hugging Face folder",
        Yes,
    ),
    key(
        "text_encoder.tokens",
        "tokens a caption, padded or cut; null: 77, for `clip` as many as its folder says, for `t5` 120",
        Yes,
    ),
    key(
        "text_encoder.channels",
        "channels of a token's vector; null: 1024, for `clip` and `t5` as many as the folder's encoder has",
        Yes,
    ),
    key(
        "text_encoder.path",
        "folder of the `clip` or `t5` encoder, also after it was moved: a run keeps no copy; or of a saved encoder to use instead of making one",
        Yes,
    ),
    key("columns.id", "column of the ids; `id` stands for other usual names, too, as above", Yes),
    key(
        "columns.image",
        "column of the pictures' paths, relative to the CSV's folder; `image_save_path` stands for other usual names, too, as above",
        Yes,
    ),
    key(
        "columns.caption",
        "column of the captions; null: as `data_args.cogvlm` says; `caption` stands for other usual names, too, as above",
        Yes,
    ),
    key(
        "skip_bad_rows",
        "a malformed row (unbalanced quotes, another number of fields, no UTF-8, no id) is counted and reported as a failed record instead of ending the job",
        Yes,
    ),
    key(
        "validation_portion",
        "share of the training set held out for validation where there is no `val_csv_path`, at least a batch, in `compare` two; null: 0.05, in `compare` 0.2",
        Yes,
    ),
    key("max_pixels", "pictures with more pixels are refused before memory is taken for them", Yes),
    key(
        "truncated_images",
        "decode images whose pixel data is cut as far as it goes, the rest gray or black as under Pillow's `LOAD_TRUNCATED_IMAGES`; false: refuse them",
        Yes,
    ),
    key(
        "token_cache",
        "folder that `encode` made: tokens and text states are taken from it; what it does not hold is made as without it",
        Yes,
    ),
    key(
        "recompute",
        "keep only each block's input and run the block again in the backward pass: less memory, more time",
        Yes,
    ),
    key(
        "cuda_graph",
        "on a GPU, record a step and replay it as one launch (the same bits in less time); false: launch by launch",
        Yes,
    ),
    key(
        "checkpoint_every",
        "updates between checkpoints, beside those at epoch ends; null: `val_it` batches",
        Yes,
    ),
    key("keep_checkpoints", "newest checkpoints to keep; 0: all", Yes),
];

/// Every name that may be set: the keys, the switches of `compat`, and the objects that hold keys.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    names.extend(Compat::SWITCHES.iter().map(|(name, _)| format!("compat.{name}")));
    let mut parents: Vec<String> =
        KEYS.iter().filter_map(|key| key.name.split_once('.')).map(|(parent, _)| parent.to_owned()).collect();
    parents.dedup();
    names.extend(parents);
    names
}

/// The two tables of `docs/config.md`: the keys, and the switches of `compat`.
///
/// # Errors
/// If the default configuration is refused.
pub fn tables() -> Result<String> {
    let defaults = Config::parse("defaults", "{}", &[])?.to_json();
    let mut text = String::from("| key | default | meaning | honoured |\n| --- | --- | --- | --- |\n");
    for Key { name, meaning, honoured } in KEYS {
        let default = name.split('.').try_fold(&defaults, |at, part| at.get(part)).unwrap_or(&Value::Null);
        let honoured = match honoured {
            Yes => "yes".to_owned(),
            Only(values) => format!("only {values}"),
            NoEffect(reason) => format!("no effect: {reason}"),
        };
        text.push_str(&format!("| `{name}` | `{default}` | {} | {honoured} |\n", described(meaning)));
    }
    text.push_str("\n| switch of `compat` | when true |\n| --- | --- |\n");
    for (name, meaning) in Compat::SWITCHES {
        text.push_str(&format!("| `{name}` | {} |\n", meaning.trim()));
    }
    Ok(text)
}
