//! Charts of values with intervals, one labeled row per value.

use super::raster::{Raster, shortened, text_width};
use crate::error::{Error, Result};

/// One row of the chart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interval {
    /// The label.
    pub name: String,
    /// The value.
    pub mean: f64,
    /// Half its interval, 0 if there is none.
    pub half: f64,
}

const WIDTH: u32 = 1600;
const TOP: u32 = 120;
const ROW: u32 = 44;
const BOTTOM: u32 = 130;
const LEFT: u32 = 620;
const RIGHT: u32 = 60;
const INK: [u8; 3] = [34, 34, 34];
const GRAY: [u8; 3] = [200, 200, 200];
/// Entirely below 0, entirely above, and neither: Okabe and Ito's blue and vermilion, and a gray.
const COLORS: [[u8; 3]; 3] = [[0, 114, 178], [213, 94, 0], [110, 110, 110]];

/// Plots the values as dots on a common scale with a line at 0; those whose interval excludes 0 are colored.
///
/// # Errors
/// If there are no values, or one is not finite.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "pixels of an image"
)]
pub(crate) fn interval_chart(title: &str, label: &str, rows: &[Interval]) -> Result<Raster> {
    if rows.is_empty() || rows.iter().any(|row| !row.mean.is_finite() || !row.half.is_finite()) {
        return Err(Error::not_finite("a chart of intervals needs finite values"));
    }
    let low = rows.iter().map(|row| row.mean - row.half).fold(0.0, f64::min);
    let high = rows.iter().map(|row| row.mean + row.half).fold(0.0, f64::max);
    let room = 0.04 * (high - low).max(1e-9);
    let (low, high) = (low - room, high + room);
    let height = TOP + ROW * rows.len() as u32 + BOTTOM;
    let mut image = Raster::new(WIDTH, height, [255; 3]);
    let x_of =
        |value: f64| LEFT + ((value - low) / (high - low) * f64::from(WIDTH - LEFT - RIGHT)).round() as u32;
    let bottom = TOP + ROW * rows.len() as u32;
    let centerd = |image: &mut Raster, x: u32, y: u32, size: f32, text: &str| {
        let left = (x as f32 - text_width(text, size) / 2.0).max(0.0);
        image.text(left as u32, y, size, INK, text);
    };
    for tick in ticks(low, high) {
        let x = x_of(tick);
        image.fill(x, TOP - 10, 2, bottom - TOP + 10, if tick == 0.0 { INK } else { GRAY });
        centerd(&mut image, x, bottom + 36, 24.0, &format!("{tick:+.3}"));
    }
    for (at, Interval { name, mean, half }) in rows.iter().enumerate() {
        let y = TOP + ROW * at as u32;
        let color = match (mean + half < 0.0, mean - half > 0.0) {
            (true, _) => COLORS[0],
            (_, true) => COLORS[1],
            _ => COLORS[2],
        };
        let name = shortened(name, 26.0, (LEFT - 40) as f32);
        let left = LEFT as f32 - 20.0 - text_width(&name, 26.0);
        image.text(left as u32, y + 31, 26.0, INK, &name);
        let (from, to) = (x_of(mean - half), x_of(mean + half));
        image.fill(from, y + 20, to - from + 1, 4, color);
        image.fill(x_of(*mean) - 6, y + 16, 12, 12, color);
    }
    let size = 38.0;
    let title = shortened(title, size, WIDTH as f32 - 80.0);
    centerd(&mut image, WIDTH / 2, 60, size, &title);
    centerd(&mut image, (LEFT + WIDTH - RIGHT) / 2, bottom + 90, 28.0, label);
    Ok(image)
}

/// About five round values in a range.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let step = (high - low) / 5.0;
    let power = 10f64.powf(step.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&round| round >= step);
    let step = step.unwrap_or(power);
    let first = (low / step).ceil();
    (0..8)
        .map(|at| (first + f64::from(at)) * step)
        .take_while(|tick| *tick <= high)
        .map(|tick| tick + 0.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_at_their_values() {
        let row = |name: &str, mean, half| Interval { name: name.to_owned(), mean, half };
        let rows = [row("better", -0.2, 0.05), row("neither", 0.05, 0.1), row("worse", 0.3, 0.02)];
        let image = interval_chart("Differences", "loss", &rows).unwrap();
        let color_at = |x: u32, y: u32| {
            let at = ((y * image.width() + x) * 3) as usize;
            <[u8; 3]>::try_from(&image.rgb()[at..at + 3]).unwrap()
        };
        // The middle of each row's dot, found by its color, from left to right.
        let dot = |at: u32| {
            let y = TOP + ROW * at + 17;
            let found: Vec<u32> = (LEFT..WIDTH).filter(|&x| COLORS.contains(&color_at(x, y))).collect();
            (found[0] + found[found.len() - 1]) / 2
        };
        assert!(dot(0) < dot(1) && dot(1) < dot(2));
        let mean = |at: u32| color_at(dot(at), TOP + ROW * at + 21);
        assert_eq!([mean(0), mean(1), mean(2)], [COLORS[0], COLORS[2], COLORS[1]]);
        assert!(interval_chart("", "", &[]).is_err());
        assert!(interval_chart("", "", &[row("x", f64::NAN, 0.0)]).is_err());
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(-0.11, 0.11), [-0.1, -0.05, 0.0, 0.05, 0.1]);
        for (low, high) in [(-1e-9, 1e-9), (-3.0, 900.0), (0.0, 0.013)] {
            let found = ticks(low, high);
            assert!((2..=8).contains(&found.len()), "{found:?}");
            assert!(found.iter().all(|tick| (low..=high).contains(tick)));
        }
    }
}
