//! Compact storage for millions of ids: a byte buffer, an exact index from id to row, and sorting.

use std::hash::Hasher;

use rayon::prelude::*;

/// Strings in one buffer; `get(row)` returns the string of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    text: String,
    ends: Vec<u64>,
}

impl Ids {
    /// Appends a string.
    pub(crate) fn push(&mut self, id: &str) {
        self.text.push_str(id);
        self.ends.push(self.text.len() as u64);
    }

    /// The string of row `row`.
    ///
    /// # Panics
    /// If `row` is out of bounds.
    #[expect(clippy::cast_possible_truncation, reason = "offsets into a buffer in memory")]
    pub fn get(&self, row: usize) -> &str {
        let begin = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        &self.text[begin..self.ends[row] as usize]
    }

    /// Number of strings.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Clears the buffer and keeps its capacity.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    /// Appends all strings of `other`.
    pub(crate) fn append(&mut self, other: &Self) {
        let offset = self.text.len() as u64;
        self.text.push_str(&other.text);
        self.ends.extend(other.ends.iter().map(|end| end + offset));
    }

    /// `rows` sorted by their ids, byte by byte (like `LC_ALL=C sort`).
    pub(crate) fn sorted(&self, rows: &[u32]) -> Vec<u32> {
        let Some(&first) = rows.first() else { return Vec::new() };
        let first = self.get(first as usize).as_bytes();
        let shared = rows.iter().fold(first.len(), |shared, &row| {
            let id = self.get(row as usize).as_bytes();
            first[..shared].iter().zip(id).take_while(|(left, right)| left == right).count()
        });
        // The eight bytes after the common prefix decide nearly every comparison without a buffer access.
        let mut keyed: Vec<(u64, u32)> = rows
            .par_iter()
            .map(|&row| {
                let rest = &self.get(row as usize).as_bytes()[shared..];
                let mut key = [0; 8];
                let length = rest.len().min(8);
                key[..length].copy_from_slice(&rest[..length]);
                (u64::from_be_bytes(key), row)
            })
            .collect();
        keyed.par_sort_unstable_by(|left, right| {
            left.0.cmp(&right.0).then_with(|| self.get(left.1 as usize).cmp(self.get(right.1 as usize)))
        });
        keyed.into_iter().map(|(_, row)| row).collect()
    }
}

/// An exact map from id to row: an open-addressing table of (part of the hash, row), 16 to 32 bytes per row.
#[derive(Clone, Debug)]
pub struct IdIndex {
    /// High half: high half of the hash. Low half: the row, or [`EMPTY`].
    slots: Vec<u64>,
}

const EMPTY: u32 = u32::MAX;

impl IdIndex {
    /// Builds the index of `ids`.
    ///
    /// # Errors
    /// If an id occurs twice: the rows (first, second) of the earliest repetition.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rows are bounded by u32 and halves of a hash are meant"
    )]
    pub(crate) fn build(ids: &Ids) -> Result<Self, (u32, u32)> {
        let mut index = Self { slots: vec![u64::from(EMPTY); (ids.len() * 2).next_power_of_two()] };
        // Hashes are computed ahead in parallel, so that only the table's cache misses remain.
        const BLOCK: usize = 1 << 16;
        let mut hashes = Vec::with_capacity(BLOCK);
        for begin in (0..ids.len()).step_by(BLOCK) {
            let end = (begin + BLOCK).min(ids.len());
            (begin..end).into_par_iter().map(|row| hash(ids.get(row))).collect_into_vec(&mut hashes);
            for (row, &hash) in (begin..end).zip(&hashes) {
                match index.probe(ids, ids.get(row), hash) {
                    Ok(first) => return Err((first, row as u32)),
                    Err(slot) => index.slots[slot] = (hash >> 32) << 32 | row as u64,
                }
            }
        }
        Ok(index)
    }

    /// The row of `id` in the indexed `ids`.
    pub(crate) fn find(&self, ids: &Ids, id: &str) -> Option<u32> {
        self.probe(ids, id, hash(id)).ok()
    }

    /// The row of `id`, or the slot to insert it into.
    #[expect(clippy::cast_possible_truncation, reason = "halves of a slot")]
    fn probe(&self, ids: &Ids, id: &str, hash: u64) -> Result<u32, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let entry = self.slots[slot];
            let row = entry as u32;
            if row == EMPTY {
                return Err(slot);
            }
            if entry >> 32 == hash >> 32 && ids.get(row as usize) == id {
                return Ok(row);
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// SipHash with a fixed key, so that memory and time are the same in every run.
fn hash(id: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(id.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(texts: &[&str]) -> Ids {
        let mut ids = Ids::default();
        texts.iter().for_each(|text| ids.push(text));
        ids
    }

    #[test]
    fn ids_are_found_and_others_are_not() {
        let ids = ids(&["b", "a", "ab", "ü", "0"]);
        let index = IdIndex::build(&ids).unwrap();
        for row in 0..5u32 {
            assert_eq!(index.find(&ids, ids.get(row as usize)), Some(row));
        }
        assert_eq!(index.find(&ids, "c"), None);
        assert_eq!(index.find(&ids, ""), None);
    }

    #[test]
    fn the_earliest_repetition_is_reported() {
        assert_eq!(IdIndex::build(&ids(&["x", "y", "z", "y", "x"])).err(), Some((1, 3)));
    }

    #[test]
    fn sorting_is_bytewise_with_and_without_a_common_prefix() {
        for prefix in ["", "corpus/000", "a"] {
            let texts: Vec<String> =
                ["10", "9", "", "1000000000001", "1000000000000", "ü", "Z", "a", "\u{0}"]
                    .iter()
                    .map(|text| format!("{prefix}{text}"))
                    .collect();
            let ids = ids(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let rows: Vec<u32> = (0..9).collect();
            let sorted: Vec<&str> = ids.sorted(&rows).iter().map(|&row| ids.get(row as usize)).collect();
            let mut expected = texts.clone();
            expected.sort();
            assert_eq!(sorted, expected);
        }
        assert!(ids(&[]).sorted(&[]).is_empty());
    }
}
