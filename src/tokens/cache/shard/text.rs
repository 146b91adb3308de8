//! The captions of a shard: text states or token ids.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use half::bf16;
use safetensors::Dtype;

use super::{
    super::{Floats, TextDescription, broken, damaged},
    Key, Opened, Table, Written, write,
};
use crate::{
    encode::{TextStates, tokenizers::TokenIds},
    error::Result,
};

/// Captions to be written to a shard.
#[derive(Default)]
pub(crate) struct TextRows {
    captions: Vec<u8>,
    mask: Vec<u8>,
    ids: Vec<u8>,
    states: Vec<u8>,
    pooled: Vec<u8>,
}

impl TextRows {
    /// Appends the token ids of captions with these keys.
    pub(crate) fn add_ids(&mut self, keys: &[Key], found: &TokenIds) -> Result<()> {
        self.add_mask(keys, found.mask.as_slice()?);
        self.ids.extend(found.ids.as_slice::<u32>()?.iter().flat_map(|id| id.to_le_bytes()));
        Ok(())
    }

    fn add_mask(&mut self, keys: &[Key], mask: &[u32]) {
        self.captions.extend(keys.iter().flatten());
        self.mask.extend(mask.iter().map(|&one| u8::from(one != 0)));
    }

    /// Appends the states of captions with these keys.
    pub(crate) fn add(&mut self, keys: &[Key], found: &TextStates, floats: Floats) -> Result<()> {
        let channels = found.states.dim(2);
        let mask = found.mask.as_slice::<u32>()?;
        self.add_mask(keys, mask);
        let states = found.states.as_slice::<f32>()?.chunks_exact(channels);
        for (state, _) in states.zip(mask).filter(|(_, one)| **one != 0) {
            floats.append(state, &mut self.states);
        }
        floats.append(found.pooled.as_slice::<f32>()?, &mut self.pooled);
        Ok(())
    }

    /// Writes the file.
    pub(crate) fn write(self, path: &Path, text: &TextDescription) -> Result<Written> {
        let count = self.captions.len() / 16;
        let mut tensors = vec![
            ("captions", Dtype::U8, vec![count, 16], self.captions),
            ("mask", Dtype::U8, vec![count, text.tokens], self.mask),
        ];
        match text.kept.floats() {
            None => tensors.push(("ids", Dtype::U32, vec![count, text.tokens], self.ids)),
            Some(floats) => {
                let states = self.states.len() / (text.channels * floats.width());
                tensors.push(("states", floats.kind(), vec![states, text.channels], self.states));
                tensors.push(("pooled", floats.kind(), vec![count, text.channels], self.pooled));
            }
        }
        write(path, &tensors, HashMap::new())
    }
}

/// The captions of a shard, memory-mapped. States can be much larger than memory, so the file is not read when the
/// cache is opened: its checksum is verified when the first caption is read.
pub(crate) struct Text {
    path: PathBuf,
    written: Written,
    intact: OnceLock<bool>,
    captions: Table,
    mask: Table,
    contents: Contents,
}

enum Contents {
    Ids(Table),
    States {
        floats: Floats,
        states: Table,
        pooled: Table,
        /// Index of the first state of each caption, followed by the total number of states.
        first: Vec<usize>,
    },
}

impl Text {
    /// Opens a file of text states or ids.
    pub(crate) fn open(path: &Path, text: &TextDescription, written: &Written) -> Result<Self> {
        let (kept, written, intact) = (path.to_path_buf(), written.clone(), OnceLock::new());
        let opened = Opened::new(path)?;
        let (captions, mask) =
            (opened.table("captions", Dtype::U8, 16)?, opened.table("mask", Dtype::U8, text.tokens)?);
        let rows = |tables: [&Table; 2]| match tables.iter().all(|table| table.rows == captions.rows) {
            true => Ok(()),
            false => Err(damaged(path, "its tensors have different numbers of rows")),
        };
        let Some(floats) = text.kept.floats() else {
            let ids = opened.table("ids", Dtype::U32, text.tokens)?;
            rows([&mask, &ids])?;
            return Ok(Self { path: kept, written, intact, captions, mask, contents: Contents::Ids(ids) });
        };
        let kind = floats.kind();
        let (states, pooled) =
            (opened.table("states", kind, text.channels)?, opened.table("pooled", kind, text.channels)?);
        rows([&mask, &pooled])?;
        let mut first = vec![0];
        let mut end = 0;
        for at in 0..mask.rows {
            end += mask.row(at).iter().filter(|&&one| one != 0).count();
            first.push(end);
        }
        if end != states.rows {
            return Err(damaged(
                path,
                format!("has {} states, but its masks have {end} tokens", states.rows),
            ));
        }
        let contents = Contents::States { floats, states, pooled, first };
        Ok(Self { path: kept, written, intact, captions, mask, contents })
    }

    /// Checks the file against its recorded length and checksum.
    fn expect_intact(&self) -> Result<()> {
        match self.intact.get_or_init(|| self.written.is_whole(&self.path)) {
            true => Ok(()),
            false => Err(broken(&self.path)),
        }
    }

    /// Lookup keys of the captions, in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        (0..self.captions.rows).map(|at| Key::try_from(self.captions.row(at)).unwrap_or_default())
    }

    /// Number of finite values; all ids count.
    pub(crate) fn count_finite(&self) -> usize {
        let (floats, tables) = match &self.contents {
            Contents::Ids(ids) => return (0..ids.rows).map(|at| ids.row(at).len() / 4).sum(),
            Contents::States { floats, states, pooled, .. } => (floats, [states, pooled]),
        };
        let mut count = 0;
        for table in tables {
            let mut row = vec![0.0f32; table.row / floats.width()];
            for at in 0..table.rows {
                floats.read(table.row(at), &mut row);
                count += row.iter().filter(|value| value.is_finite()).count();
            }
        }
        count
    }

    /// Copies a caption's states `[T, D]` (0 for padding), mask `[T]` and pooled vector `[D]` into the given slices.
    /// Does nothing if the shard stores ids.
    ///
    /// # Errors
    /// If the file has changed since it was written.
    pub(crate) fn read(
        &self,
        at: usize,
        states: &mut [f32],
        mask: &mut [u32],
        pooled: &mut [f32],
    ) -> Result<()> {
        let Contents::States { floats, states: kept, pooled: vectors, first } = &self.contents else {
            return Ok(());
        };
        self.expect_intact()?;
        let channels = pooled.len();
        let mut next = first[at];
        for ((state, mask), &one) in states.chunks_exact_mut(channels).zip(mask).zip(self.mask.row(at)) {
            *mask = u32::from(one != 0);
            if one == 0 {
                state.fill(0.0);
            } else {
                floats.read(kept.row(next), state);
                next += 1;
            }
        }
        floats.read(vectors.row(at), pooled);
        Ok(())
    }

    /// Copies a caption's ids and mask `[T]` into the given slices. Does nothing if the shard stores states.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub(crate) fn read_ids(&self, at: usize, ids: &mut [u32], mask: &mut [u32]) -> Result<()> {
        let Contents::Ids(kept) = &self.contents else { return Ok(()) };
        self.expect_intact()?;
        for (id, bytes) in ids.iter_mut().zip(kept.row(at).as_chunks::<4>().0) {
            *id = u32::from_le_bytes(*bytes);
        }
        for (mask, &one) in mask.iter_mut().zip(self.mask.row(at)) {
            *mask = u32::from(one != 0);
        }
        Ok(())
    }
}

impl Floats {
    fn kind(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F32 => Dtype::F32,
        }
    }

    fn width(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    fn append(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::Bf16 => {
                bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()));
            }
            Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
    }

    fn read(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::Bf16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
    }

    /// Rounds values to the stored precision.
    pub(crate) fn round(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
    }
}
