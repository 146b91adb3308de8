//! GIF: the first frame.

use std::borrow::Cow;

use image::ImageFormat;
use weezl::{BitOrder, LzwStatus, decode::Decoder, encode::Encoder};

use super::{DecodeOptions, Decoded, READ_TRUNCATED, check_pixels, decode_with_image};

/// Decodes the first frame of a GIF. If the logical screen is empty, its size is that of the frame, as in Pillow.
pub(super) fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Decoded, String> {
    let mut file = Cow::Borrowed(bytes);
    let frame = Frame::first(bytes);
    if let (Some([0, 0, _, _] | [_, _, 0, 0]), Some(frame)) = (bytes.get(6..10), &frame) {
        let screen = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let [width, height] = [
            screen(6).max(frame.left.saturating_add(frame.width)),
            screen(8).max(frame.top.saturating_add(frame.height)),
        ];
        check_pixels(u64::from(width), u64::from(height), options.max_pixels)?;
        file.to_mut()[6..8].copy_from_slice(&width.to_le_bytes());
        file.to_mut()[8..10].copy_from_slice(&height.to_le_bytes());
    }
    let decoded = decode_with_image(&file, ImageFormat::Gif, options.max_pixels);
    let Err(error) = decoded else { return decoded };
    let Some(frame) = frame.filter(|frame| frame.is_cut) else { return Err(error) };
    if !options.truncated {
        return Err(format!("{error}; {READ_TRUNCATED}"));
    }
    check_pixels(u64::from(frame.width), u64::from(frame.height), options.max_pixels)?;
    let completed = frame.completed(&file).ok_or(error)?;
    decode_with_image(&completed, ImageFormat::Gif, options.max_pixels)
}

/// Location of the first frame.
struct Frame {
    left: u16,
    top: u16,
    width: u16,
    height: u16,
    /// The transparent index, if there is one.
    transparent: Option<u8>,
    /// Offset of the minimum code size; the data blocks follow.
    codes: usize,
    /// Whether the file ends before the data does.
    is_cut: bool,
}

impl Frame {
    /// Finds the first frame; `None` if the file ends before its data or is invalid there.
    fn first(bytes: &[u8]) -> Option<Self> {
        let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
        let mut at = 13 + table(*bytes.get(10)?);
        let mut transparent = None;
        loop {
            match *bytes.get(at)? {
                0x21 => {
                    if let Some(&[0xF9, _, flags, _, _, index]) = bytes.get(at + 1..at + 7) {
                        transparent = (flags & 1 == 1).then_some(index);
                    }
                    at = after_blocks(bytes, at + 2)?;
                }
                0x2C => {
                    let number = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
                    let codes = at + 10 + table(*bytes.get(at + 9)?);
                    bytes.get(codes)?;
                    return Some(Self {
                        left: number(at + 1)?,
                        top: number(at + 3)?,
                        width: number(at + 5)?,
                        height: number(at + 7)?,
                        transparent,
                        codes,
                        is_cut: after_blocks(bytes, codes + 1).is_none(),
                    });
                }
                // Stray bytes between blocks are skipped, as in Pillow.
                0x3B => return None,
                _ => at += 1,
            }
        }
    }

    /// Completes the file: the part before the frame's data, and the complete blocks of the data; the rest is
    /// transparent or has the first color.
    fn completed(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let code_size = *bytes.get(self.codes)?;
        if !(1..=11).contains(&code_size) {
            return None;
        }
        let mut packed = Vec::new();
        let mut rest = bytes.get(self.codes + 1..)?;
        while let Some((&length, after)) = rest.split_first() {
            // A truncated block is not decoded, as in Pillow.
            let Some(block) = after.get(..usize::from(length)) else { break };
            packed.extend_from_slice(block);
            rest = &after[block.len()..];
        }
        let pixels = usize::from(self.width) * usize::from(self.height);
        let mut indices = unpacked(&packed, code_size, pixels);
        // An index with more bits than the codes cannot be written.
        let fill = self.transparent.filter(|index| u32::from(*index) < 1 << code_size).unwrap_or(0);
        indices.resize(pixels, fill);
        let packed = Encoder::new(BitOrder::Lsb, code_size).encode(&indices).ok()?;
        let mut file = bytes[..=self.codes].to_vec();
        for block in packed.chunks(255) {
            file.push(u8::try_from(block.len()).unwrap_or(u8::MAX));
            file.extend_from_slice(block);
        }
        file.extend([0, 0x3B]);
        Some(file)
    }
}

/// The offset after the data blocks that start at `at`; `None` if the file ends before.
fn after_blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}

/// Decompresses at most `most` indices, up to the end or the first error.
fn unpacked(packed: &[u8], code_size: u8, most: usize) -> Vec<u8> {
    let mut decoder = Decoder::new(BitOrder::Lsb, code_size);
    let (mut found, mut read) = (Vec::new(), 0);
    let mut buffer = vec![0; 1 << 14];
    while found.len() < most {
        let result = decoder.decode_bytes(&packed[read..], &mut buffer);
        read += result.consumed_in;
        found.extend_from_slice(&buffer[..result.consumed_out]);
        let stuck = (result.consumed_in, result.consumed_out) == (0, 0);
        if stuck || !matches!(result.status, Ok(LzwStatus::Ok)) {
            break;
        }
    }
    found.truncate(most);
    found
}
