//! A small rasterizer: polygons filled by winding number, with exact horizontal coverage and five scan lines per
//! pixel. It uses no platform math functions, so images are bit-identical on every machine.

use std::sync::LazyLock;

use super::color::{Color, mix};

/// A point, x to the right and y down.
pub(super) type Point = [f64; 2];

/// A closed polygon; the last point connects to the first.
pub(super) type Contour = Vec<Point>;

/// Scan lines per row of pixels.
const LINES: usize = 5;

/// Steps of [`direction`] per full rotation: 3 degrees each.
pub(super) const TURN: usize = 120;

/// The unit vector after `step` of [`TURN`] steps, clockwise from the right (y points down).
pub(super) fn direction(step: usize) -> Point {
    static DIRECTIONS: LazyLock<[Point; TURN]> = LazyLock::new(|| {
        // Repeated rotation by 3 degrees needs no call of sin and cos, whose last bit differs between platforms.
        const COS: f64 = 0.998_629_534_754_573_9;
        const SIN: f64 = 0.052_335_956_242_943_83;
        let mut directions = [[1.0, 0.0]; TURN];
        for step in 1..TURN {
            let [x, y] = directions[step - 1];
            directions[step] = [x * COS - y * SIN, x * SIN + y * COS];
        }
        directions
    });
    DIRECTIONS[step % TURN]
}

/// An ellipse as a polygon with 40 vertices.
pub(super) fn ellipse(x: f64, y: f64, x_radius: f64, y_radius: f64) -> Contour {
    (0..TURN)
        .step_by(3)
        .map(|step| {
            let [cos, sin] = direction(step);
            [x + x_radius * cos, y + y_radius * sin]
        })
        .collect()
}

/// A rectangle from its left, top, right and bottom edges.
pub(super) fn rectangle(left: f64, top: f64, right: f64, bottom: f64) -> Contour {
    vec![[left, top], [right, top], [right, bottom], [left, bottom]]
}

/// Outlines of the polygons' edges, `width` wide, as polygons with the same orientation.
pub(super) fn outline(contours: &[Contour], width: f64) -> Vec<Contour> {
    let half = width / 2.0;
    let mut strokes = Vec::new();
    for contour in contours {
        for (index, &from) in contour.iter().enumerate() {
            let to = contour[(index + 1) % contour.len()];
            let along = [to[0] - from[0], to[1] - from[1]];
            let length = (along[0] * along[0] + along[1] * along[1]).sqrt();
            if length == 0.0 {
                continue;
            }
            let across = [-along[1] / length * half, along[0] / length * half];
            strokes.push(vec![
                [from[0] + across[0], from[1] + across[1]],
                [from[0] - across[0], from[1] - across[1]],
                [to[0] - across[0], to[1] - across[1]],
                [to[0] + across[0], to[1] + across[1]],
            ]);
            let joint = (0..TURN).step_by(15).map(|step| {
                let [cos, sin] = direction(step);
                [from[0] + half * cos, from[1] + half * sin]
            });
            strokes.push(joint.collect());
        }
    }
    strokes
}

/// A square image being drawn. Coordinates range from 0 to 1 in both directions.
pub(super) struct Canvas {
    side: usize,
    pixels: Vec<Color>,
    crossings: Vec<Vec<(f64, i32)>>,
    coverage: Vec<f64>,
}

impl Canvas {
    /// A black canvas of `side`×`side` pixels.
    pub(super) fn new(side: usize) -> Self {
        Self {
            side,
            pixels: vec![[0.0; 3]; side * side],
            crossings: vec![Vec::new(); side * LINES],
            coverage: vec![0.0; side],
        }
    }

    /// Sets every pixel to the mean of `color` over 3×3 points in it.
    pub(super) fn cover(&mut self, color: impl Fn(f64, f64) -> Color) {
        let side = self.side as f64;
        for row in 0..self.side {
            for column in 0..self.side {
                self.pixels[row * self.side + column] =
                    mean_of_pixel(column as f64, row as f64, side, &color);
            }
        }
    }

    /// Fills the union of polygons (nonzero winding number) with `color`, a function of the position, at an opacity
    /// in [0, 1].
    pub(super) fn fill(&mut self, contours: &[Contour], color: impl Fn(f64, f64) -> Color, opacity: f64) {
        let lines_in_all = (self.side * LINES) as f64;
        let side = self.side as f64;
        let (mut first_line, mut last_line) = (self.crossings.len(), 0);
        for contour in contours {
            for (index, &from) in contour.iter().enumerate() {
                let to = contour[(index + 1) % contour.len()];
                let (upper, lower, winding) = if from[1] < to[1] { (from, to, 1) } else { (to, from, -1) };
                // Line k is at y = (k + 1/2) / lines; an edge covers the lines in [upper, lower).
                let first = (upper[1] * lines_in_all - 0.5).ceil().max(0.0);
                let end = (lower[1] * lines_in_all - 0.5).ceil().min(lines_in_all);
                if first >= end {
                    continue;
                }
                let slope = (lower[0] - upper[0]) / (lower[1] - upper[1]);
                let (first, end) = (first as usize, end as usize);
                for line in first..end {
                    let y = (line as f64 + 0.5) / lines_in_all;
                    let x = upper[0] + (y - upper[1]) * slope;
                    self.crossings[line].push((x * side, winding));
                }
                first_line = first_line.min(first);
                last_line = last_line.max(end);
            }
        }
        if first_line >= last_line {
            return;
        }
        for row in first_line / LINES..last_line.div_ceil(LINES) {
            let (mut first_column, mut last_column) = (self.side, 0);
            for line in row * LINES..(row + 1) * LINES {
                let crossings = &mut self.crossings[line];
                crossings.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
                let (mut winding, mut start) = (0, 0.0);
                for &(x, turn) in crossings.iter() {
                    if winding == 0 {
                        start = x;
                    }
                    winding += turn;
                    if winding == 0 {
                        let (left, right) = (start.clamp(0.0, side), x.clamp(0.0, side));
                        if left < right {
                            add_span(&mut self.coverage, left, right);
                            first_column = first_column.min(left as usize);
                            last_column = last_column.max((right.ceil() as usize).min(self.side));
                        }
                    }
                }
                crossings.clear();
            }
            for column in first_column..last_column {
                let share = std::mem::take(&mut self.coverage[column]);
                if share > 0.0 {
                    let paint = mean_of_pixel(column as f64, row as f64, side, &color);
                    let pixel = &mut self.pixels[row * self.side + column];
                    *pixel = mix(*pixel, paint, (share * opacity).min(1.0));
                }
            }
        }
    }

    /// The mean color of 5×5 points in the square around (`x`, `y`).
    pub(super) fn mean_around(&self, x: f64, y: f64, radius: f64) -> Color {
        let mut sum = [0.0; 3];
        for row in -2..=2 {
            for column in -2..=2 {
                let index = |middle: f64, step: i32| {
                    let at = (middle + radius * f64::from(step) / 2.0) * self.side as f64;
                    (at.max(0.0) as usize).min(self.side - 1)
                };
                let pixel = self.pixels[index(y, row) * self.side + index(x, column)];
                sum = [0, 1, 2].map(|channel| sum[channel] + pixel[channel] / 25.0);
            }
        }
        sum
    }

    /// The finished image, `[side, side, 3]` bytes.
    pub(super) fn into_rgb(self) -> Vec<u8> {
        self.pixels.iter().flatten().map(|&value| (value + 0.5).clamp(0.0, 255.0) as u8).collect()
    }
}

/// The mean of `color` over 3×3 points of a pixel.
fn mean_of_pixel(column: f64, row: f64, side: f64, color: &impl Fn(f64, f64) -> Color) -> Color {
    let mut sum = [0.0; 3];
    for y in [1.0 / 6.0, 0.5, 5.0 / 6.0] {
        for x in [1.0 / 6.0, 0.5, 5.0 / 6.0] {
            let sample = color((column + x) / side, (row + y) / side);
            sum = [0, 1, 2].map(|channel| sum[channel] + sample[channel]);
        }
    }
    sum.map(|value| value / 9.0)
}

/// Adds one scan line's coverage of the pixels between `left` and `right`, in pixels.
fn add_span(coverage: &mut [f64], left: f64, right: f64) {
    const SHARE: f64 = 1.0 / LINES as f64;
    let (first, last) = (left as usize, right as usize);
    if first == last {
        coverage[first] += (right - left) * SHARE;
        return;
    }
    coverage[first] += (first as f64 + 1.0 - left) * SHARE;
    for pixel in &mut coverage[first + 1..last] {
        *pixel += SHARE;
    }
    if last < coverage.len() {
        coverage[last] += (right - last as f64) * SHARE;
    }
}
