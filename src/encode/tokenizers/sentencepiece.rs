//! T5's tokenizer from `spiece.model`, SentencePiece's format, assembled the way transformers does for its fast
//! tokenizer.
//!
//! The file is a protocol buffer of which a few fields matter: pieces with scores and types, the normalizer's character
//! map, the model type. Sources: `sentencepiece_model.proto`; `T5Converter` and `T5TokenizerFast` of transformers 4.49.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::{
    AddedToken, TokenizerBuilder,
    models::unigram::Unigram,
    normalizers::{Precompiled, Replace, Sequence, Strip, replace::ReplacePattern},
    pre_tokenizers::metaspace::{Metaspace, PrependScheme},
    processors::template::TemplateProcessing,
};

use super::{
    bounded::{Normalizing, PreTokenizing, SavedTokenizer, charsmap, within_room},
    special::Special,
    unusable,
};
use crate::{
    error::{Error, Result},
    files::mistaken::{Mistaken, read_json},
};

/// The file name.
pub(super) const SPIECE: &str = "spiece.model";

/// Replaces a space.
const SPACE: char = '▁';

/// The end-of-sequence token.
const END: &str = "</s>";

/// Number of tokens `<extra_id_0>` and so on after the pieces, unless the settings differ.
const EXTRA_IDS: usize = 100;

/// Maximum number of them; the released models have 100.
const MAX_EXTRA_IDS: usize = 10_000;

/// The fields of `tokenizer_config.json` other than the special tokens.
#[derive(Deserialize)]
#[serde(default)]
struct Settings {
    extra_ids: usize,
    /// Whether a space is prepended to every part of a caption and not only to the first. `null` means yes.
    legacy: Option<bool>,
    add_prefix_space: Option<bool>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { extra_ids: EXTRA_IDS, legacy: None, add_prefix_space: None }
    }
}

/// The type of a piece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PieceKind {
    /// Ordinary text, or unused.
    Plain,
    /// A control token.
    Control,
    /// A user-defined word that is never split.
    UserDefined,
}

struct Piece {
    text: String,
    score: f32,
    kind: PieceKind,
}

/// A SentencePiece model.
struct Model {
    pieces: Vec<Piece>,
    /// Model type. 1: unigram, 2: byte-pair encoding, 3: words, 4: characters.
    kind: u64,
    unknown: u64,
    charsmap: Vec<u8>,
}

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Fixed(u32),
    Bytes(&'a [u8]),
    /// A fixed-width field. No field that matters here has this type.
    Wide,
}

/// Iterates over the fields of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next field's number and content; `Some(None)` at the end, `None` if the message is damaged.
    fn next(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Wide)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed(u32::from_le_bytes(*self.take(4)?.first_chunk()?)),
            _ => return None,
        };
        Some(Some((tag >> 3, field)))
    }
}

impl Model {
    /// Parses a model; `None` if it is damaged.
    fn read(bytes: &[u8]) -> Option<Self> {
        // Defaults of the format.
        let mut model = Self { pieces: Vec::new(), kind: 1, unknown: 0, charsmap: Vec::new() };
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (2, Field::Bytes(trainer)) => {
                    let mut fields = Fields(trainer);
                    while let Some((number, field)) = fields.next()? {
                        match (number, field) {
                            (3, Field::Number(kind)) => model.kind = kind,
                            (40, Field::Number(unknown)) => model.unknown = unknown,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => {
                    let mut fields = Fields(normalizer);
                    while let Some((number, field)) = fields.next()? {
                        if let (2, Field::Bytes(map)) = (number, field) {
                            map.clone_into(&mut model.charsmap);
                        }
                    }
                }
                _ => {}
            }
        }
        Some(model)
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: PieceKind::Plain };
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (1, Field::Bytes(text)) => std::str::from_utf8(text).ok()?.clone_into(&mut piece.text),
                (2, Field::Fixed(score)) => piece.score = f32::from_bits(score),
                (3, Field::Number(kind)) => {
                    piece.kind = match kind {
                        3 => PieceKind::Control,
                        4 => PieceKind::UserDefined,
                        _ => PieceKind::Plain,
                    };
                }
                _ => {}
            }
        }
        Some(piece)
    }
}

/// Opens a folder's `spiece.model`; returns the tokenizer and the files read.
pub(super) fn open(folder: &Path, special: &Special) -> Result<(SavedTokenizer, Vec<PathBuf>)> {
    let path = folder.join(SPIECE);
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let config = folder.join("tokenizer_config.json");
    let settings: Settings =
        if config.exists() { read_json(&config, "a tokenizer's settings")? } else { Settings::default() };
    let refuse = |message: String| unusable(&path, message);
    let model = match Model::read(&bytes) {
        Some(model) if !model.pieces.is_empty() => model,
        _ => {
            return Err(refuse(match Mistaken::of(&bytes) {
                Some(found) => format!("not a SentencePiece model but {found}"),
                None => "not a SentencePiece model, or corrupt; download it again".to_owned(),
            }));
        }
    };
    if model.kind != 1 {
        let kind = match model.kind {
            2 => "byte-pair encoding",
            3 => "whole words",
            _ => "characters or an unknown kind",
        };
        return Err(refuse(format!("a SentencePiece model of {kind}; T5's are unigram models")));
    }
    if settings.extra_ids > MAX_EXTRA_IDS {
        return Err(unusable(
            &config,
            format!("extra_ids is {}, but no model has more than {MAX_EXTRA_IDS}", settings.extra_ids),
        ));
    }
    if let Some(piece) = model.pieces.iter().find(|piece| !piece.score.is_finite()) {
        return Err(refuse(format!(
            "the piece {:?} has the score {}; the file is damaged",
            piece.text, piece.score
        )));
    }
    let tokenizer = within_room(bytes.len(), || assemble(model, &settings, special))
        .map_err(|error| refuse(error.to_string()))?;
    Ok((tokenizer, vec![path]))
}

fn assemble(model: Model, settings: &Settings, special: &Special) -> tokenizers::Result<SavedTokenizer> {
    let longest = if model.charsmap.is_empty() { 0 } else { charsmap(&model.charsmap)? };
    let mut steps = Vec::new();
    if !model.charsmap.is_empty() {
        steps.push(Precompiled::from(&model.charsmap)?.into());
    }
    steps.push(Strip::new(false, true).into());
    steps.push(Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), SPACE)?.into());
    let scheme = match (settings.add_prefix_space, settings.legacy) {
        (Some(false), _) => PrependScheme::Never,
        (_, Some(false)) => PrependScheme::First,
        _ => PrependScheme::Always,
    };
    let extra: Vec<String> = (0..settings.extra_ids).map(|at| format!("<extra_id_{at}>")).collect();
    let own = |kind: PieceKind| move |piece: &&Piece| piece.kind == kind;
    let added = |text: &str, special: bool| AddedToken::from(text, special).normalized(false);
    let mut marks: Vec<AddedToken> =
        model.pieces.iter().filter(own(PieceKind::Control)).map(|piece| added(&piece.text, true)).collect();
    let words: Vec<AddedToken> = model
        .pieces
        .iter()
        .filter(own(PieceKind::UserDefined))
        .map(|piece| added(&piece.text, false))
        .collect();
    let named = |token: &Option<String>, usual: &str| token.clone().unwrap_or_else(|| usual.to_owned());
    let usual = [named(&special.end, END), named(&special.unknown, "<unk>"), named(&special.pad, "<pad>")];
    marks.extend(usual.iter().map(|text| added(text, true)));
    let mut vocabulary: Vec<(String, f64)> =
        model.pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score))).collect();
    vocabulary.extend(extra.iter().rev().map(|text| (text.clone(), 0.0)));
    marks.extend(extra.iter().map(|text| added(text, true)));
    // A special token that is not a piece would get an id beyond the encoder's vocabulary.
    if let Some(unknown) = usual.iter().find(|mark| !vocabulary.iter().any(|(text, _)| text == *mark)) {
        return Err(format!("the vocabulary lacks the token {unknown:?}").into());
    }
    let end = vocabulary
        .iter()
        .position(|(text, _)| text == END)
        .ok_or("the vocabulary lacks the token \"</s>\"")?;
    let unknown = usize::try_from(model.unknown)?;
    let template = TemplateProcessing::builder()
        .try_single(format!("$A {END}"))?
        .special_tokens(vec![(END.to_owned(), u32::try_from(end)?)])
        .build()?;
    let mut tokenizer: SavedTokenizer = TokenizerBuilder::new()
        .with_model(Unigram::from(vocabulary, Some(unknown), false)?.into())
        .with_normalizer(Some(Normalizing::new(Sequence::new(steps).into(), longest)?))
        .with_pre_tokenizer(Some(PreTokenizing::new(Metaspace::new(SPACE, scheme, true).into())))
        .with_post_processor(Some(template.into()))
        .with_decoder(None)
        .build()?;
    tokenizer.add_tokens(words)?;
    tokenizer.add_special_tokens(marks)?;
    Ok(tokenizer)
}
