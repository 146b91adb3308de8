//! Integers and floats of every protocol.

use std::ops::Range;

use super::{Item, MALFORMED, Machine, Node};

/// Maximum length of an integer in bytes.
const LONGEST: usize = 1024;

impl Machine<'_> {
    pub(super) fn number(&mut self, code: u8) -> Result<(), String> {
        let item = match code {
            b'J' => Item::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Item::Int(u8::from_le_bytes(self.array()?).into()),
            b'M' => Item::Int(u16::from_le_bytes(self.array()?).into()),
            b'G' => Item::Float(f64::from_be_bytes(self.array()?)),
            b'F' => Item::Float(self.line_as()?),
            b'L' => {
                let range = self.line()?;
                let digits = std::str::from_utf8(&self.bytes[range.clone()]).map_err(|_| MALFORMED)?;
                match digits.trim_end_matches('L').parse() {
                    Ok(value) => Item::Int(value),
                    // More than 64 bits: kept as text.
                    Err(_) if is_whole(digits) => return self.push_node(Node::Text(range)),
                    Err(_) => return Err(MALFORMED.to_owned()),
                }
            }
            b'I' => {
                let start = self.at;
                let value: i64 = self.line_as()?;
                // Protocol 0 writes bools as two-digit integers.
                match &self.bytes[start..self.at] {
                    b"00\n" => Item::Bool(false),
                    b"01\n" => Item::Bool(true),
                    _ => Item::Int(value),
                }
            }
            _ => {
                let length = match code {
                    0x8a => u8::from_le_bytes(self.array()?).into(),
                    _ => i32::from_le_bytes(self.array()?) as usize,
                };
                if length > LONGEST {
                    return Err(format!("the pickle has an integer of {length} bytes, more than {LONGEST}"));
                }
                let range = self.take(length)?;
                return self.long(range);
            }
        };
        self.push(item)
    }

    /// An integer of any width, two's complement.
    fn long(&mut self, range: Range<usize>) -> Result<(), String> {
        let digits = &self.bytes[range.clone()];
        let negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        let Some(part) = wide.get_mut(..digits.len()) else { return self.push_node(Node::Long(range)) };
        part.copy_from_slice(digits);
        self.push(Item::Int(i64::from_le_bytes(wide)))
    }
}

/// Whether a string is an integer of protocol 0.
fn is_whole(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text).trim_end_matches('L');
    !digits.is_empty() && digits.len() <= 2 * LONGEST && digits.bytes().all(|byte| byte.is_ascii_digit())
}
