//! CLIP's byte-pair encoding from `vocab.json` and `merges.txt`, the format of the released pipelines.
//!
//! The upstream code uses the tokenizer written in Python, which cleans captions before splitting them
//! (see [`clean`](super::clean)); this module reproduces its steps.

use std::path::{Path, PathBuf};

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizedString, Normalizer, SplitDelimiterBehavior, TokenizerBuilder,
    TokenizerImpl,
    models::bpe::BPE,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::roberta::RobertaProcessing,
};

use super::{
    clean::clean,
    read_ids,
    special::{CLIP_BEGIN, CLIP_END, Special},
    unusable,
};
use crate::{error::Result, files::mistaken::Mistaken};

/// English contractions, words, single digits, and runs of anything else but spaces.
const PIECES: &str = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";

pub(super) type ClipTokenizer =
    TokenizerImpl<BPE, Cleaned, PreTokenizerWrapper, RobertaProcessing, DecoderWrapper>;

/// Cleaning and lower-casing as a normalizer: it must run after special tokens have been
/// extracted, as in the Python tokenizer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cleaned;

impl Normalizer for Cleaned {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        // Offsets into the caption are not needed, so the alignment may restart.
        *text = NormalizedString::from(clean(text.get()));
        Ok(())
    }
}

/// Opens the tokenizer; returns it with the text and id of its padding token, and the files read.
pub(super) fn open(folder: &Path, special: &Special) -> Result<(ClipTokenizer, (String, u32), Vec<PathBuf>)> {
    let (vocabulary_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocabulary_path.exists() || !merges_path.exists() {
        return Err(unusable(
            folder,
            "contains no tokenizer: neither tokenizer.json nor vocab.json and merges.txt; copy the tokenizer's files of the \
             encoder's Hugging Face folder here",
        ));
    }
    let (Some(vocabulary_file), Some(merges_file)) = (vocabulary_path.to_str(), merges_path.to_str()) else {
        return Err(unusable(folder, "the folder's name is not UTF-8, so its files cannot be opened"));
    };
    // Check for this after an error of either file: a Git LFS pointer has two words per line, as merges have, and is
    // only detected when its words are looked up in the vocabulary.
    let mistaken = || {
        [&vocabulary_path, &merges_path].into_iter().find_map(|path| {
            let found = Mistaken::of(&std::fs::read(path).ok()?)?;
            Some(unusable(path, format!("not a tokenizer's file but {found}")))
        })
    };
    let (mut vocabulary, merges) = BPE::read_file(vocabulary_file, merges_file).map_err(|error| {
        mistaken()
            .unwrap_or_else(|| unusable(folder, format!("vocab.json or merges.txt is damaged: {error}")))
    })?;
    let mut files = vec![vocabulary_path.clone(), merges_path.clone()];
    let added_path = folder.join("added_tokens.json");
    let mut added: Vec<(String, u32)> = Vec::new();
    if added_path.exists() {
        added = read_ids(&added_path)?;
        vocabulary.extend(added.iter().cloned());
        files.push(added_path);
    }
    let or = |token: &Option<String>, usual: &str| token.clone().unwrap_or_else(|| usual.to_owned());
    let mark = |token: String| match vocabulary.get(&token) {
        Some(&id) => Ok((token, id)),
        None => Err(unusable(&vocabulary_path, format!("the vocabulary lacks the token {token:?}"))),
    };
    let begin = mark(or(&special.begin, CLIP_BEGIN))?;
    let end = mark(or(&special.end, CLIP_END))?;
    let pad = mark(or(&special.pad, CLIP_END))?;
    let unknown = mark(or(&special.unknown, CLIP_END))?;

    // The start and end tokens match in upper and lower case, that is, after cleaning. Other special tokens, such as a
    // padding token "!", match only verbatim.
    let special = |token: &String, normalized| AddedToken::from(token.as_str(), true).normalized(normalized);
    let marks = [begin.0.clone(), end.0.clone()];
    let others = [&pad.0, &unknown.0].into_iter().chain(added.iter().map(|(token, _)| token));
    let others = others.filter(|token| !marks.contains(token)).map(|token| special(token, false));
    let specials: Vec<AddedToken> = marks.iter().map(|token| special(token, true)).chain(others).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .unk_token(unknown.0)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_owned())
        .build()
        .map_err(|error| {
            mistaken().unwrap_or_else(|| {
                unusable(&merges_path, format!("the merges do not match the vocabulary: {error}"))
            })
        })?;
    let refuse = |error| unusable(folder, format!("cannot build the tokenizer: {error}"));
    let pieces = Split::new(SplitPattern::Regex(PIECES.to_owned()), SplitDelimiterBehavior::Removed, true)
        .map_err(refuse)?;
    let steps: Vec<PreTokenizerWrapper> = vec![pieces.into(), ByteLevel::new(false, false, false).into()];
    let mut tokenizer: ClipTokenizer = TokenizerBuilder::new()
        .with_model(model)
        .with_normalizer(Some(Cleaned))
        .with_pre_tokenizer(Some(Sequence::new(steps).into()))
        .with_post_processor(Some(RobertaProcessing::new(end, begin).trim_offsets(false)))
        .with_decoder(None)
        .build()
        .map_err(refuse)?;
    tokenizer.add_special_tokens(specials).map_err(refuse)?;
    Ok((tokenizer, pad, files))
}
