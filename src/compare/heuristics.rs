//! Ratings that need no network: the paper's clarity, frequency and edge density, the resolution, and the caption's
//! length. Images are resized to squares of [`SIDE`] pixels first, so that a large one does not rate higher for its
//! size alone.

use std::io::BufReader;

use image::ImageReader;

use crate::{
    compare::arms::Heuristic,
    data::{ImageRef, Loader, Preprocess, Record, SquareImage},
    error::Result,
    interrupt::Interrupt,
    jobs::progress::Progress,
};

/// The side in pixels that images are resized to.
const SIDE: usize = 256;
/// Images decoded ahead of their use.
const AHEAD: usize = 64;
/// The magnitude of Sobel's gradient from which a pixel counts as an edge; the maximum is about 1442.
const EDGE: f32 = 200.0;

/// The values of every record, by heuristic in the given order.
///
/// # Errors
/// If an image cannot be read, or [`Error::Interrupted`](crate::Error::Interrupted).
pub(super) fn rate(
    heuristics: &[Heuristic],
    records: &[Record],
    preprocess: Preprocess,
    workers: usize,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    let mut found = vec![Vec::with_capacity(records.len()); heuristics.len()];
    let of_images = heuristics
        .iter()
        .any(|one| matches!(one, Heuristic::Clarity | Heuristic::Frequency | Heuristic::EdgeDensity));
    let requests: Vec<_> = match of_images {
        true => records.iter().map(|record| ((), record.image.clone())).collect(),
        false => Vec::new(),
    };
    let mut loader = Loader::new(requests, Preprocess { side: SIDE, ..preprocess }, workers, AHEAD)?;
    for (at, record) in records.iter().enumerate() {
        interrupt.check("finished ratings are kept; run the same command again")?;
        progress.counted("reading images", at as u64 + 1, records.len() as u64);
        let brightness = match loader.next() {
            Some((_, image)) => Some(brightness(&image?)),
            None => None,
        };
        let of_image = |number: fn(&[f32]) -> f64| brightness.as_deref().map_or(f64::NAN, number);
        for (heuristic, numbers) in heuristics.iter().zip(&mut found) {
            numbers.push(match heuristic {
                Heuristic::Clarity => of_image(clarity),
                Heuristic::Frequency => of_image(frequency),
                Heuristic::EdgeDensity => of_image(edge_density),
                Heuristic::Resolution => {
                    let (width, height) = dimensions(&record.image)
                        .map_err(|error| record.image.refuse(format!("its size cannot be read: {error}")))?;
                    f64::from(width) * f64::from(height)
                }
                Heuristic::CaptionLength => record.caption.chars().count() as f64,
            });
        }
    }
    Ok(found)
}

/// Width and height, from the header of an image.
fn dimensions(image: &ImageRef) -> image::ImageResult<(u32, u32)> {
    ImageReader::new(BufReader::new(image.open()?)).with_guessed_format()?.into_dimensions()
}

/// Brightness (ITU-R BT.601) from 0 to 255, `[SIDE, SIDE]`.
fn brightness(image: &SquareImage) -> Vec<f32> {
    let level = |pixel: &[u8; 3]| {
        let [red, green, blue] = pixel.map(f32::from);
        0.299 * red + 0.587 * green + 0.114 * blue
    };
    image.rgb.as_chunks::<3>().0.iter().map(level).collect()
}

/// `f` of the 3×3 neighborhood of each inner pixel, row by row.
fn around(image: &[f32], mut f: impl FnMut([[f32; 3]; 3])) {
    for y in 1..SIDE - 1 {
        for x in 1..SIDE - 1 {
            f([0, 1, 2].map(|row| {
                let start = (y + row - 1) * SIDE + x - 1;
                [image[start], image[start + 1], image[start + 2]]
            }));
        }
    }
}

/// Variance of the Laplacian (Pech-Pacheco et al. 2000).
fn clarity(image: &[f32]) -> f64 {
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
    around(image, |[[_, up, _], [left, middle, right], [_, down, _]]| {
        let laplacian = f64::from(up + down + left + right - 4.0 * middle);
        sum += laplacian;
        squares += laplacian * laplacian;
        count += 1.0;
    });
    let mean: f64 = sum / count;
    (squares / count - mean * mean).max(0.0)
}

/// Mean square of the three detail coefficients of each 2×2 block.
fn frequency(image: &[f32]) -> f64 {
    let mut energy = 0.0;
    for rows in image.chunks_exact(2 * SIDE) {
        let (upper, lower) = rows.split_at(SIDE);
        for (upper, lower) in upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0) {
            let ([a, b], [c, d]) = (upper, lower);
            for detail in [a - b + c - d, a + b - c - d, a - b - c + d] {
                energy += f64::from(detail * detail) / 4.0;
            }
        }
    }
    energy / (SIDE * SIDE) as f64
}

/// Fraction of pixels whose Sobel gradient is longer than [`EDGE`].
fn edge_density(image: &[f32]) -> f64 {
    let (mut edges, mut count) = (0.0, 0.0);
    around(image, |[[a, b, c], [d, _, e], [f, g, h]]| {
        let across = c + 2.0 * e + h - a - 2.0 * d - f;
        let down = f + 2.0 * g + h - a - 2.0 * b - c;
        edges += f64::from(u8::from(across * across + down * down > EDGE * EDGE));
        count += 1.0;
    });
    edges / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_plain_images_are_known() {
        let image = |level: fn(usize, usize) -> f32| -> Vec<f32> {
            (0..SIDE * SIDE).map(|at| level(at % SIDE, at / SIDE)).collect()
        };
        let flat = image(|_, _| 90.0);
        assert_eq!((clarity(&flat), frequency(&flat), edge_density(&flat)), (0.0, 0.0, 0.0));
        // A step of 100 within a column of 2×2 blocks; the edge is two pixels wide.
        let step = image(|x, _| if x < SIDE / 2 - 1 { 50.0 } else { 150.0 });
        approx::assert_relative_eq!(edge_density(&step), 2.0 / (SIDE - 2) as f64);
        // In each of these blocks, one of the three details is ±200 and the others are 0.
        approx::assert_relative_eq!(
            frequency(&step),
            200.0f64 * 200.0 / 4.0 * (SIDE / 2) as f64 / (SIDE * SIDE) as f64
        );
        // The Laplacian is +100 in one column and -100 in the next.
        approx::assert_relative_eq!(clarity(&step), 2.0 * 1e4 / (SIDE - 2) as f64);
        let board = image(|x, y| if (x + y) % 2 == 0 { 0.0 } else { 255.0 });
        assert!(clarity(&board) > 100.0 * clarity(&step) && frequency(&board) > 10.0 * frequency(&step));
    }
}
