//! Files made by hand, as PyTorch would not make them.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses its own part")]

/// One entry of an archive, with what its records are to say.
pub struct Forged<'a> {
    pub name: &'a str,
    pub bytes: &'a [u8],
    /// What the table of contents says of its size; the truth unless given.
    pub said_size: Option<u32>,
    /// And of where it lies.
    pub said_place: Option<u32>,
    pub method: u16,
    pub flags: u16,
}

impl<'a> Forged<'a> {
    pub fn honest(name: &'a str, bytes: &'a [u8]) -> Self {
        Self { name, bytes, said_size: None, said_place: None, method: 0, flags: 0 }
    }
}

fn fields(fields: &[(u64, usize)]) -> Vec<u8> {
    fields.iter().flat_map(|&(value, width)| value.to_le_bytes()[..width].to_vec()).collect()
}

/// A stored zip archive; with `wide`, all sizes and places are in the 64-bit records.
pub fn archive_of(entries: &[Forged<'_>], wide: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut table = Vec::new();
    for entry in entries {
        let (place, length) = (file.len() as u64, entry.name.len() as u64);
        let size = entry.bytes.len() as u64;
        let (method, flags) = (u64::from(entry.method), u64::from(entry.flags));
        file.extend(fields(&[(0x0403_4b50, 4), (20, 2), (flags, 2), (method, 2), (0, 4), (0, 4)]));
        file.extend(fields(&[(size, 4), (size, 4), (length, 2), (0, 2)]));
        file.extend(entry.name.bytes());
        file.extend(entry.bytes);
        let size = entry.said_size.map_or(size, u64::from);
        let place = entry.said_place.map_or(place, u64::from);
        let (narrow, extra) = if wide { (u64::from(u32::MAX), 28) } else { (0, 0) };
        let shown = |value: u64| if wide { narrow } else { value };
        table.extend(fields(&[(0x0201_4b50, 4), (20, 2), (20, 2), (flags, 2), (method, 2), (0, 4), (0, 4)]));
        table.extend(fields(&[
            (shown(size), 4),
            (shown(size), 4),
            (length, 2),
            (extra, 2),
            (0, 2),
            (0, 2),
            (0, 2),
            (0, 4),
        ]));
        table.extend(fields(&[(shown(place), 4)]));
        table.extend(entry.name.bytes());
        if wide {
            table.extend(fields(&[(1, 2), (24, 2), (size, 8), (size, 8), (place, 8)]));
        }
    }
    let (start, size, count) = (file.len() as u64, table.len() as u64, entries.len() as u64);
    file.extend(table);
    if wide {
        let record = file.len() as u64;
        file.extend(fields(&[(0x0606_4b50, 4), (44, 8), (45, 2), (45, 2), (0, 4), (0, 4)]));
        file.extend(fields(&[(count, 8), (count, 8), (size, 8), (start, 8)]));
        file.extend(fields(&[(0x0706_4b50, 4), (0, 4), (record, 8), (1, 4)]));
    }
    let most = |value: u64, width: usize| if wide { (u64::MAX, width) } else { (value, width) };
    file.extend(fields(&[(0x0605_4b50, 4), (0, 2), (0, 2), most(count, 2), most(count, 2)]));
    file.extend(fields(&[most(size, 4), most(start, 4), (0, 2)]));
    file
}

/// A checkpoint of this pickle with one storage, called 0, of 16 floats.
pub fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = (0..16u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    archive_of(&[Forged::honest("a/data.pkl", pickle), Forged::honest("a/data/0", &numbers)], false)
}

/// The instructions of a tensor over that storage; numbers are given as pickle instructions.
pub fn tensor(numbers: &[u8], offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu",
        numbers,
        b"tQ",
        offset,
        b"(",
        shape,
        b"t(",
        strides,
        b"t\x89)tR",
    ]
    .concat()
}

/// A pickle of `{"x": <these instructions>}`.
pub fn dict_of(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}X\x01\0\0\0x", value, b"s."].concat()
}
