//! Detects file formats from content.

use crate::files::mistaken::{Mistaken, beginning};

/// A supported format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    WebP,
    /// GIF.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF, including BigTIFF.
    Tiff,
}

/// The supported formats, for messages.
pub(super) const READ: &str = "supported formats are PNG, JPEG, WebP, GIF, BMP and TIFF";

/// Number of bytes from which a format is detected.
pub const SNIFFED_BYTES: usize = 1024;

impl FileFormat {
    /// Detects the format from the first bytes of a file, ignoring its name.
    ///
    /// # Errors
    /// The actual format of the file, as a message without the file name.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Err("the file is empty (0 bytes)".to_owned());
        }
        Ok(match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Self::Jpeg,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Self::Png,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Self::WebP,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'B', b'M', ..] => Self::Bmp,
            [b'I', b'I', b'*' | b'+', 0, ..] | [b'M', b'M', 0, b'*' | b'+', ..] => Self::Tiff,
            _ => return Err(refusal(bytes)),
        })
    }

    /// The common extension of the format, without the dot.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tif",
        }
    }
}

/// First bytes of other formats. Those that are images can be converted.
const BEGINNINGS: &[(&[u8], &str)] = &[
    (b"\xFF\x0A", "a JPEG XL image"),
    (b"\0\0\0\x0CJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\0\0\0\x0CjP  \r\n\x87\n", "a JPEG 2000 image"),
    (b"\xFF\x4F\xFF\x51", "a JPEG 2000 image"),
    (b"\xFF\xD8", "a JPEG of unknown kind"),
    (b"8BPS", "a PSD (Photoshop) image"),
    (b"\0\0\x01\0", "an ICO image"),
    (b"\0\0\x02\0", "a CUR image"),
    (b"icns", "an ICNS image"),
    (b"%PDF", "a PDF file"),
    (b"%!PS", "a PostScript file"),
    (b"\xC5\xD0\xD3\xC6", "an EPS file"),
    (b"P1", "a PNM image"),
    (b"P2", "a PNM image"),
    (b"P3", "a PNM image"),
    (b"P4", "a PNM image"),
    (b"P5", "a PNM image"),
    (b"P6", "a PNM image"),
    (b"P7", "a PAM image"),
    (b"DDS ", "a DDS image"),
    (b"\x76\x2F\x31\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"qoif", "a QOI image"),
    (b"farbfeld", "a farbfeld image"),
    (b"gimp xcf", "an XCF (GIMP) image"),
    (b"II\xBC", "a JPEG XR image"),
    (b"IIU\0", "a camera's raw image"),
    (b"IIRO", "a camera's raw image"),
    (b"FUJIFILM", "a camera's raw image"),
    (b"\x8AMNG", "an MNG animation"),
    (b"\x8BJNG", "a JNG image"),
    (b"FLIF", "a FLIF image"),
    (b"BPG\xFB", "a BPG image"),
    (b"AT&TFORM", "a DjVu file"),
    (b"\xD7\xCD\xC6\x9A", "a WMF drawing"),
    (b"SIMPLE  =", "a FITS image"),
    (b"\x1A\x45\xDF\xA3", "a WebM or Matroska video"),
];

/// Describes an unsupported file, with a hint.
fn refusal(bytes: &[u8]) -> String {
    let image = |name: &str| format!("{name}; {READ}: convert it to one of them");
    if let Some((_, name)) = BEGINNINGS.iter().find(|(start, _)| bytes.starts_with(start)) {
        return image(name);
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return image(of_brands(bytes));
    }
    let text = beginning(bytes);
    match Mistaken::of(bytes) {
        // SVG is XML, too, and web pages may contain it.
        None | Some(Mistaken::Answer) if text.contains("<svg") => return image("an SVG drawing"),
        Some(found) => return format!("not an image but {found}"),
        None => {}
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return "not an image: every byte is 0".to_owned();
    }
    format!("not a recognized image; {READ}")
}

/// The format of an ISO base media file, by its major brand and then its compatible brands.
fn of_brands(bytes: &[u8]) -> &'static str {
    let length = bytes.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let brands = bytes.get(8..length.min(bytes.len()).max(12)).unwrap_or_default();
    for brand in brands.chunks_exact(4) {
        match brand {
            b"avif" | b"avis" => return "an AVIF image",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" => {
                return "a HEIC image (HEIF)";
            }
            b"crx " => return "a camera's raw image",
            b"jp2 " | b"jpx " => return "a JPEG 2000 image",
            b"jxl " => return "a JPEG XL image",
            _ => {}
        }
    }
    if brands.chunks_exact(4).any(|brand| matches!(brand, b"mif1" | b"msf1" | b"mif2")) {
        return "a HEIF image";
    }
    "an MP4 or QuickTime video"
}
