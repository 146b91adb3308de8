//! Allocator for a device's memory.
//!
//! Large pieces are requested from the driver, and blocks are cut from them best-fit: the smallest free range that is
//! long enough, the lowest address among equals. Adjacent free ranges are merged, so the free list depends only on what
//! is in use, not on the order in which it was freed. A step that allocates the same blocks in the same order therefore
//! gets the same addresses every time, and after the first steps the driver is never called.
//!
//! A device runs all work in the order in which it was queued, so a freed block can be reused at once: its earlier
//! users run first.
//!
//! A captured graph keeps every address that it uses, because a replay uses them again: blocks in use when the capture
//! began are not reused when they are dropped, and those allocated during the capture belong to the graph. Both become
//! free once the graph is dropped.

use std::collections::{BTreeMap, HashMap};

use super::driver::MemoryLayout;

/// Memory statistics of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of live buffers, and of memory that graphs keep.
    pub used_bytes: usize,
    /// Maximum of `used_bytes` since the device was opened or the peak was reset.
    pub peak_bytes: usize,
    /// Bytes allocated from the driver, used or not.
    pub held_bytes: usize,
    /// Number of allocation requests to the driver.
    pub requests: u64,
}

/// Free ranges by start address; adjacent ranges of one piece are always merged.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, usize>);

impl Ranges {
    /// The smallest range of at least `bytes`, the lowest address among equals.
    fn best(&self, bytes: usize) -> Option<(u64, usize)> {
        let fitting = self.0.iter().filter(|(_, length)| **length >= bytes);
        fitting.min_by_key(|(_, length)| **length).map(|(&address, &length)| (address, length))
    }

    /// Takes `bytes` from the start of the best range.
    fn take(&mut self, bytes: usize) -> Option<u64> {
        let (address, length) = self.best(bytes)?;
        self.0.remove(&address);
        if length > bytes {
            self.0.insert(address + bytes as u64, length - bytes);
        }
        Some(address)
    }

    /// Adds a range, merged with its neighbors within the piece `from..to`.
    fn add(&mut self, mut address: u64, mut length: usize, (from, to): (u64, u64)) {
        let end = address + length as u64;
        if end < to
            && let Some(after) = self.0.remove(&end)
        {
            length += after;
        }
        if address > from
            && let Some((&before, &size)) = self.0.range(..address).next_back()
            && before + size as u64 == address
        {
            self.0.remove(&before);
            address = before;
            length += size;
        }
        self.0.insert(address, length);
    }

    fn bytes(&self) -> usize {
        self.0.values().sum()
    }
}

/// A range that is in use.
#[derive(Debug)]
struct Block {
    /// Requested bytes.
    bytes: usize,
    /// Reserved bytes: rounded up, plus the gap behind the block.
    room: usize,
    /// Serial number, in order of allocation.
    number: u64,
    /// The graph whose capture allocated it.
    graph: Option<u64>,
    /// Freed, but kept for a graph.
    dropped: bool,
}

/// The memory that a graph keeps.
#[derive(Debug, Default)]
struct Kept {
    /// Blocks with smaller serial numbers may be used by it.
    before: u64,
    free: Ranges,
    /// Every range that was allocated during its capture.
    touched: Ranges,
}

/// Blocks that are permanently free: address and requested bytes.
pub(super) type Freed = Vec<(u64, usize)>;

/// The memory of one device.
#[derive(Debug)]
pub(super) struct Arena {
    layout: MemoryLayout,
    pieces: BTreeMap<u64, usize>,
    free: Ranges,
    blocks: HashMap<u64, Block>,
    graphs: BTreeMap<u64, Kept>,
    recording: Option<u64>,
    next_number: u64,
    next_graph: u64,
    memory: MemoryUse,
}

impl Arena {
    pub(super) fn new(layout: MemoryLayout) -> Self {
        Self {
            layout,
            pieces: BTreeMap::new(),
            free: Ranges::default(),
            blocks: HashMap::new(),
            graphs: BTreeMap::new(),
            recording: None,
            next_number: 0,
            next_graph: 0,
            memory: MemoryUse::default(),
        }
    }

    pub(super) fn memory(&self) -> MemoryUse {
        self.memory
    }

    pub(super) fn reset_peak(&mut self) {
        self.memory.peak_bytes = self.memory.used_bytes;
    }

    /// Free bytes of the memory allocated from the driver.
    pub(super) fn free_bytes(&self) -> usize {
        self.free.bytes()
    }

    fn room(&self, bytes: usize) -> usize {
        bytes.next_multiple_of(self.layout.granule) + self.layout.gap
    }

    fn piece_of(&self, address: u64) -> (u64, u64) {
        let found = self.pieces.range(..=address).next_back();
        found.map_or((address, address), |(&from, &length)| (from, from + length as u64))
    }

    fn use_more(&mut self, bytes: usize) {
        self.memory.used_bytes += bytes;
        self.memory.peak_bytes = self.memory.peak_bytes.max(self.memory.used_bytes);
    }

    /// Allocates a block of `bytes`; `None` if no free range is long enough and a piece must be added.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        let room = self.room(bytes);
        let address = match self.recording {
            None => {
                let address = self.free.take(room)?;
                self.use_more(room);
                address
            }
            Some(graph) => self.take_for(graph, room)?,
        };
        let block = Block { bytes, room, number: self.next_number, graph: self.recording, dropped: false };
        self.next_number += 1;
        self.blocks.insert(address, block);
        Some(address)
    }

    /// A capture takes whole ranges and cuts its blocks from those, so that it reuses only its own memory.
    fn take_for(&mut self, graph: u64, room: usize) -> Option<u64> {
        let kept = self.graphs.get_mut(&graph)?;
        if kept.free.best(room).is_none() {
            let (address, length) = self.free.best(room)?;
            self.free.0.remove(&address);
            kept.free.0.insert(address, length);
        }
        let address = kept.free.take(room)?;
        let piece = self.piece_of(address);
        let mut fresh = room;
        let kept = self.graphs.get_mut(&graph)?;
        // Only the part of this range that the graph has not used before adds to what the graph keeps.
        for (&start, &length) in &kept.touched.0 {
            let (from, to) = (start.max(address), (start + length as u64).min(address + room as u64));
            fresh -= usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        }
        cover(&mut kept.touched, address, room, piece);
        self.use_more(fresh);
        Some(address)
    }

    /// Sizes to request from the driver so that `bytes` fit: the preferred one, and the minimum.
    pub(super) fn piece_sizes(&self, bytes: usize) -> [usize; 2] {
        let least = self.room(bytes);
        [least.next_multiple_of(self.layout.piece_granule).max(self.layout.piece), least]
    }

    /// Adds a piece allocated from the driver.
    pub(super) fn add_piece(&mut self, address: u64, bytes: usize) {
        self.pieces.insert(address, bytes);
        self.memory.held_bytes += bytes;
        self.memory.requests += 1;
        self.free.add(address, bytes, (address, address + bytes as u64));
    }

    /// Frees a block. Memory that a graph still keeps is not among the results.
    pub(super) fn give_back(&mut self, address: u64) -> Freed {
        let Some(block) = self.blocks.get_mut(&address) else { return Vec::new() };
        block.dropped = true;
        let number = block.number;
        if block.graph.is_none() && self.graphs.values().any(|kept| kept.before > number) {
            return Vec::new();
        }
        self.release(address)
    }

    fn release(&mut self, address: u64) -> Freed {
        let Some(block) = self.blocks.remove(&address) else { return Vec::new() };
        let piece = self.piece_of(address);
        match block.graph.and_then(|graph| self.graphs.get_mut(&graph)) {
            Some(kept) => kept.free.add(address, block.room, piece),
            None => {
                self.free.add(address, block.room, piece);
                self.memory.used_bytes -= block.room;
            }
        }
        vec![(address, block.bytes)]
    }

    /// Whether new blocks belong to a graph.
    pub(super) fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    /// From now until [`end_recording`](Self::end_recording), new blocks belong to a new graph.
    pub(super) fn begin_recording(&mut self) -> u64 {
        let graph = self.next_graph;
        self.next_graph += 1;
        self.graphs.insert(graph, Kept { before: self.next_number, ..Kept::default() });
        self.recording = Some(graph);
        graph
    }

    /// Ends the capture and frees memory that it reserved but did not use.
    pub(super) fn end_recording(&mut self) {
        let Some(graph) = self.recording.take() else { return };
        let Some(kept) = self.graphs.get_mut(&graph) else { return };
        let free = std::mem::take(&mut kept.free);
        let mut unused = Vec::new();
        for (start, length) in free.0 {
            let end = start + length as u64;
            let mut at = start;
            let used = kept.touched.0.iter().map(|(&from, &bytes)| (from, from + bytes as u64));
            for (from, to) in used.filter(|&(from, to)| from < end && to > start) {
                let (from, to) = (from.max(start), to.min(end));
                if at < from {
                    unused.push((at, from - at));
                }
                kept.free.0.insert(from, usize::try_from(to - from).unwrap_or(0));
                at = to;
            }
            if at < end {
                unused.push((at, end - at));
            }
        }
        for (address, length) in unused {
            let piece = self.piece_of(address);
            self.free.add(address, usize::try_from(length).unwrap_or(0), piece);
        }
    }

    /// Removes a graph and frees the memory that only it kept.
    pub(super) fn remove_graph(&mut self, graph: u64) -> Freed {
        let Some(kept) = self.graphs.remove(&graph) else { return Vec::new() };
        let mut freed = Vec::new();
        for (address, length) in kept.free.0 {
            let piece = self.piece_of(address);
            self.free.add(address, length, piece);
            self.memory.used_bytes -= length;
            freed.push((address, length));
        }
        let mut dropped: Vec<u64> = Vec::new();
        for (&address, block) in &mut self.blocks {
            if block.graph == Some(graph) {
                // Still in use: an ordinary block from now on.
                block.graph = None;
            } else if block.dropped && self.graphs.values().all(|kept| kept.before <= block.number) {
                dropped.push(address);
            }
        }
        // The order of blocks does not matter: the resulting free ranges are the same.
        for address in dropped {
            freed.extend(self.release(address));
        }
        freed
    }

    /// Removes unused pieces, which the caller returns to the driver.
    pub(super) fn remove_unused_pieces(&mut self) -> Vec<(u64, usize)> {
        let unused: Vec<(u64, usize)> = self
            .pieces
            .iter()
            .filter(|(address, bytes)| self.free.0.get(address) == Some(bytes))
            .map(|(&address, &bytes)| (address, bytes))
            .collect();
        for (address, bytes) in &unused {
            self.pieces.remove(address);
            self.free.0.remove(address);
            self.memory.held_bytes -= bytes;
        }
        unused
    }

    /// All pieces, for when the device is closed.
    pub(super) fn pieces(&self) -> Vec<(u64, usize)> {
        self.pieces.iter().map(|(&address, &bytes)| (address, bytes)).collect()
    }
}

/// Adds a range to a set of ranges that it may overlap.
fn cover(set: &mut Ranges, address: u64, length: usize, piece: (u64, u64)) {
    let (mut from, mut to) = (address, address + length as u64);
    let overlapping: Vec<u64> = set
        .0
        .range(..to)
        .filter(|(start, bytes)| *start + **bytes as u64 > from)
        .map(|(&start, _)| start)
        .collect();
    for start in overlapping {
        let bytes = set.0.remove(&start).unwrap_or(0);
        from = from.min(start);
        to = to.max(start + bytes as u64);
    }
    set.add(from, usize::try_from(to - from).unwrap_or(0), piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: MemoryLayout =
        MemoryLayout { granule: 16, gap: 0, piece: 1024, piece_granule: 64, keep: true };

    fn arena() -> Arena {
        let mut arena = Arena::new(LAYOUT);
        arena.add_piece(4096, 1024);
        arena
    }

    #[test]
    fn the_same_requests_get_the_same_addresses() {
        let mut arena = arena();
        let held = arena.take(100).unwrap();
        let step = |arena: &mut Arena| {
            let (a, b) = (arena.take(50).unwrap(), arena.take(70).unwrap());
            arena.give_back(a);
            let c = arena.take(40).unwrap();
            for block in [c, b] {
                arena.give_back(block);
            }
            [a, b, c]
        };
        let first = step(&mut arena);
        assert_eq!(first, step(&mut arena));
        assert_eq!(first[0], first[2], "what was given back is handed out again");
        assert_eq!(
            arena.memory(),
            MemoryUse { used_bytes: 112, peak_bytes: 256, held_bytes: 1024, requests: 1 }
        );
        arena.give_back(held);
        assert_eq!(arena.take(1024), Some(4096), "free neighbors join");
    }

    #[test]
    fn ranges_of_neighboring_pieces_stay_separate() {
        let mut arena = arena();
        arena.add_piece(5120, 1024);
        assert_eq!(arena.take(1025), None);
        let (a, b) = (arena.take(1024).unwrap(), arena.take(1024).unwrap());
        arena.give_back(a);
        arena.give_back(b);
        assert_eq!(arena.remove_unused_pieces(), [(4096, 1024), (5120, 1024)]);
        assert_eq!(arena.take(1), None);
    }

    #[test]
    fn the_best_stretch_is_the_smallest_that_fits() {
        let mut arena = arena();
        let blocks: Vec<u64> =
            [160, 16, 64, 16].into_iter().map(|bytes| arena.take(bytes).unwrap()).collect();
        arena.give_back(blocks[0]);
        arena.give_back(blocks[2]);
        assert_eq!(arena.take(60), Some(blocks[2]));
        assert_eq!(arena.take(60), Some(blocks[0]));
    }

    #[test]
    fn a_graph_keeps_what_it_used() {
        let mut arena = arena();
        let before = arena.take(100).unwrap();
        let graph = arena.begin_recording();
        let scratch = arena.take(200).unwrap();
        arena.give_back(scratch);
        let result = arena.take(64).unwrap();
        assert_eq!(result, scratch, "a recording reuses its own memory");
        arena.end_recording();
        assert_eq!(arena.memory().used_bytes, 112 + 208);
        // Neither what the graph used nor what it will read is reused, whoever drops it.
        assert!(arena.give_back(before).is_empty());
        arena.give_back(result);
        let other: Vec<u64> = std::iter::from_fn(|| arena.take(16)).collect();
        assert_eq!(other.len() * 16, 1024 - 112 - 208);
        assert!(other.iter().all(|&address| address >= 4096 + 320));
        let freed = arena.remove_graph(graph);
        assert!(freed.contains(&(before, 100)));
        for address in other {
            arena.give_back(address);
        }
        assert_eq!(arena.take(1024), Some(4096));
    }

    #[test]
    fn results_outlive_their_graph() {
        let mut arena = arena();
        let graph = arena.begin_recording();
        let result = arena.take(64).unwrap();
        arena.end_recording();
        arena.remove_graph(graph);
        let next = arena.take(64).unwrap();
        assert_ne!(next, result);
        assert_eq!(arena.give_back(result), [(result, 64)]);
        assert_eq!(arena.memory().used_bytes, 64);
    }
}
