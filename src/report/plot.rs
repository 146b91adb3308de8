//! Line charts and histograms, plotted with `plotters` and the embedded font.

use std::sync::OnceLock;

use plotters::{
    backend::{BitMapBackend, DrawingBackend, SVGBackend},
    chart::{ChartBuilder, ChartContext, SeriesLabelPosition},
    coord::{Shift, cartesian::Cartesian2d, types::RangedCoordf64},
    drawing::{DrawingArea, IntoDrawingArea},
    element::{Circle, DynElement, IntoDynElement, PathElement, Polygon, Rectangle},
    style::{Color, FontStyle, IntoFont, RGBColor, ShapeStyle, TextStyle, WHITE, register_font},
};

use super::raster::{FONT_FILE, Raster, drawable, shortened, text_width};
use crate::error::{Error, Result};

/// Okabe and Ito's color-blind-safe palette, without its yellow.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(70, 70, 70),
];
const INK: RGBColor = RGBColor(34, 34, 34);
const GRID: RGBColor = RGBColor(226, 226, 226);
const FAINT_GRID: RGBColor = RGBColor(243, 243, 243);
/// The bars of all rows.
const ALL_ROWS: RGBColor = RGBColor(190, 198, 206);
const WIDTH: u32 = 1600;
const HEIGHT: u32 = 960;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y), x ascending. Non-finite points leave a gap.
    pub points: Vec<(f64, f64)>,
    /// (x, low, high) of a band around the line, x ascending; empty for none.
    pub band: Vec<(f64, f64, f64)>,
}

impl Series {
    /// A line without a band.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, band: Vec::new() }
    }
}

/// Rows kept by a selection.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The selection's name in the legend.
    pub name: String,
    /// The indices of the rows.
    pub rows: Vec<u32>,
}

/// A line chart of losses or other measurements over the course of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct LossCurves {
    /// The title.
    pub title: String,
    /// The label of the horizontal axis.
    pub x_label: String,
    /// The label of the vertical axis.
    pub y_label: String,
    /// The lines; at most seven have distinct colors.
    pub series: Vec<Series>,
    /// Weight of the past in an exponential moving average, in [0, 1), bias-corrected as in TensorBoard; the raw lines
    /// are shown faintly behind. 0: no smoothing.
    pub smoothing: f64,
}

fn drawing_failed(error: impl std::fmt::Display) -> Error {
    Error::invalid(format!("cannot plot the chart: {error}"))
}

const FAMILY: &str = "embedded DejaVu Sans";

/// Text in the embedded font, `size` pixels high.
fn text_style(size: u32) -> TextStyle<'static> {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        let registered = register_font(FAMILY, FontStyle::Normal, FONT_FILE);
        assert!(registered.is_ok(), "the embedded font is a TrueType font");
    });
    TextStyle::from((FAMILY, size).into_font()).color(&INK)
}

type Canvas<B> = DrawingArea<B, Shift>;
type Chart<'a, B> = ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A chart that can be plotted on any backend.
trait Draw {
    fn title(&self) -> &str;
    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()>;
}

/// Renders a white image with a title and a chart under it. The title is not rendered by `plotters`, which snaps each
/// glyph to whole pixels, so that large text looks uneven.
fn rendered(chart: &impl Draw) -> Result<Raster> {
    let mut image = Raster::new(WIDTH, HEIGHT, [255; 3]);
    {
        let canvas = BitMapBackend::with_buffer(image.rgb_mut(), (WIDTH, HEIGHT)).into_drawing_area();
        chart.draw(&canvas)?;
        canvas.present().map_err(drawing_failed)?;
    }
    const SIZE: f32 = 42.0;
    let title = shortened(chart.title(), SIZE, WIDTH as f32 - 80.0);
    let left = (WIDTH as f32 - text_width(&title, SIZE)) / 2.0;
    image.text(left as u32, 54, SIZE, [INK.0, INK.1, INK.2], &title);
    Ok(image)
}

/// The chart as an SVG element without its title, in the colors of the enclosing page: ink, paper and grid are the CSS
/// variables of these names.
fn scalable(chart: &impl Draw) -> Result<String> {
    let mut svg = String::new();
    {
        let canvas = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        chart.draw(&canvas)?;
        canvas.present().map_err(drawing_failed)?;
    }
    let title = html_escape::encode_double_quoted_attribute(chart.title());
    // Crop the space reserved for the title.
    let head = format!("<svg viewBox=\"0 70 {WIDTH} {}\" role=\"img\" aria-label=\"{title}\"", HEIGHT - 70);
    let body = svg.find("xmlns").map_or("", |at| &svg[at..]);
    let mut svg = format!("{head} {body}");
    for (color, name) in [(INK, "ink"), (WHITE, "paper"), (GRID, "grid"), (FAINT_GRID, "grid")] {
        svg = svg.replace(
            &format!("\"#{:02X}{:02X}{:02X}\"", color.0, color.1, color.2),
            &format!("\"var(--{name})\""),
        );
    }
    Ok(svg.replace(FAMILY, "inherit"))
}

/// A chart with axes and grid over the given ranges.
fn chart<'a, B: DrawingBackend>(
    canvas: &'a Canvas<B>,
    (x_label, y_label): (&str, &str),
    x: (f64, f64),
    y: (f64, f64),
) -> Result<Chart<'a, B>> {
    let mut chart = ChartBuilder::on(canvas)
        .margin_top(84)
        .margin_left(20)
        .margin_right(44)
        .margin_bottom(16)
        .x_label_area_size(88)
        .y_label_area_size(128)
        .build_cartesian_2d(x.0..x.1, y.0..y.1)
        .map_err(drawing_failed)?;
    chart
        .configure_mesh()
        .x_desc(drawable(x_label))
        .y_desc(drawable(y_label))
        .axis_desc_style(text_style(30))
        .label_style(text_style(26))
        .x_labels(9)
        .y_labels(9)
        .x_label_formatter(&|&value| tick(value, x.1 - x.0))
        .y_label_formatter(&|&value| tick(value, y.1 - y.0))
        .x_max_light_lines(1)
        .y_max_light_lines(1)
        .bold_line_style(GRID)
        .light_line_style(FAINT_GRID)
        .axis_style(ShapeStyle::from(&INK).stroke_width(2))
        .draw()
        .map_err(drawing_failed)?;
    Ok(chart)
}

fn legend<'a, B: DrawingBackend + 'a>(chart: &mut Chart<'a, B>, position: SeriesLabelPosition) -> Result<()> {
    chart
        .configure_series_labels()
        .position(position)
        .margin(18)
        .legend_area_size(52)
        .label_font(text_style(28))
        .background_style(WHITE.mix(0.88))
        .border_style(GRID)
        .draw()
        .map_err(drawing_failed)
}

/// A tick label with as many decimals as ticks over `range` need.
fn tick(value: f64, range: f64) -> String {
    let value = if value.abs() < range * 1e-9 { 0.0 } else { value };
    if value != 0.0 && (value.abs() >= 1e7 || value.abs() < 1e-4) {
        return format!("{value:.2e}").replace('-', "−");
    }
    let decimals = [20.0, 2.0, 0.2, 0.02, 0.002].iter().take_while(|&&limit| range < limit).count();
    let number = format!("{:.decimals$}", value.abs());
    let (whole, rest) = number.split_at(number.find('.').unwrap_or(number.len()));
    format!("{}{}{rest}", if value < 0.0 { "−" } else { "" }, grouped(whole))
}

/// The digits of an integer with a thin space between thousands, from five digits on.
fn grouped(digits: &str) -> String {
    let mut spaced = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && digits.len() > 4 && (digits.len() - index).is_multiple_of(3) {
            spaced.push('\u{2009}');
        }
        spaced.push(digit);
    }
    spaced
}

/// The range of `values` with a margin; an empty range is widened around its value.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> Option<(f64, f64)> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return None;
    }
    let width = high - low;
    if width <= low.abs().max(high.abs()) * 1e-9 {
        let around = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        return Some((low - around, high + around));
    }
    Some((low - width * margin, high + width * margin))
}

/// The exponential moving average that the smoothed line shows; gaps stay gaps.
fn smoothed(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let (mut sum, mut norm) = (0.0, 0.0);
    let step = |&(x, y): &(f64, f64)| {
        if !y.is_finite() {
            return (x, y);
        }
        sum = sum * weight + y * (1.0 - weight);
        norm = norm * weight + (1.0 - weight);
        (x, sum / norm)
    };
    points.iter().map(step).collect()
}

/// The segments of `points` between gaps.
fn stretches(points: &[(f64, f64)]) -> impl Iterator<Item = &[(f64, f64)]> {
    points.split(|(x, y)| !x.is_finite() || !y.is_finite()).filter(|stretch| !stretch.is_empty())
}

/// A line through `points`, plotted segment by segment: `plotters` extends the corners of thick lines into long spikes.
/// A single point becomes a dot.
fn line<B: DrawingBackend>(
    points: &[(f64, f64)],
    style: ShapeStyle,
) -> Vec<DynElement<'static, B, (f64, f64)>> {
    if let [point] = points {
        return vec![Circle::new(*point, style.stroke_width + 2, style.filled()).into_dyn()];
    }
    points.windows(2).map(|pair| PathElement::new(pair.to_vec(), style).into_dyn()).collect()
}

/// Plots a line chart, 1600 × 960 pixels.
///
/// # Errors
/// If no point is finite or the smoothing is outside [0, 1).
pub fn loss_curves(curves: &LossCurves) -> Result<Raster> {
    rendered(curves)
}

/// The line chart as an SVG element without its title, in the colors of the page around it.
///
/// # Errors
/// As [`loss_curves`].
pub fn loss_curves_svg(curves: &LossCurves) -> Result<String> {
    scalable(curves)
}

impl Draw for LossCurves {
    fn title(&self) -> &str {
        &self.title
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()> {
        if !(0.0..1.0).contains(&self.smoothing) {
            return Err(Error::argument(format!(
                "smoothing is {}, but must be at least 0 and below 1",
                self.smoothing
            )));
        }
        let points = || {
            let all = self.series.iter().flat_map(|series| {
                let band = series.band.iter().flat_map(|&(x, low, high)| [(x, low), (x, high)]);
                series.points.iter().copied().chain(band)
            });
            all.filter(|(x, y)| x.is_finite() && y.is_finite())
        };
        let (Some(x), Some(y)) =
            (range(points().map(|point| point.0), 0.0), range(points().map(|point| point.1), 0.05))
        else {
            return Err(Error::not_finite("the chart has no finite point"));
        };
        let mut chart = chart(canvas, (&self.x_label, &self.y_label), x, y)?;
        for (index, series) in self.series.iter().enumerate() {
            let style = PALETTE[index % PALETTE.len()].mix(0.16).filled();
            let finite = |(x, low, high): &&(f64, f64, f64)| (x + low + high).is_finite();
            let band: Vec<_> = series.band.iter().filter(finite).collect();
            if band.len() > 1 {
                let low = band.iter().map(|&&(x, low, _)| (x, low));
                let high = band.iter().rev().map(|&&(x, _, high)| (x, high));
                let outline: Vec<(f64, f64)> = low.chain(high).collect();
                chart.draw_series([Polygon::new(outline, style)]).map_err(drawing_failed)?;
            }
        }
        if self.smoothing > 0.0 {
            for (index, series) in self.series.iter().enumerate() {
                let style = PALETTE[index % PALETTE.len()].mix(0.22).stroke_width(2);
                for stretch in stretches(&series.points) {
                    chart.draw_series(line(stretch, style)).map_err(drawing_failed)?;
                }
            }
        }
        for (index, series) in self.series.iter().enumerate() {
            let style = PALETTE[index % PALETTE.len()].stroke_width(4);
            let points = smoothed(&series.points, self.smoothing);
            for (part, stretch) in stretches(&points).enumerate() {
                let plotted = chart.draw_series(line(stretch, style)).map_err(drawing_failed)?;
                if part == 0 {
                    plotted
                        .label(drawable(&series.name))
                        .legend(move |(x, y)| PathElement::new([(x + 4, y), (x + 40, y)], style));
                }
            }
        }
        // If the lines end low, there is room for the legend above them.
        let last = |series: &Series| {
            series.points.iter().rev().find(|point| point.1.is_finite()).map(|point| point.1)
        };
        let ends: Vec<f64> = self.series.iter().filter_map(last).collect();
        let low = ends.iter().sum::<f64>() / ends.len().max(1) as f64 <= (y.0 + y.1) / 2.0;
        legend(
            &mut chart,
            if low { SeriesLabelPosition::UpperRight } else { SeriesLabelPosition::LowerRight },
        )
    }
}

/// A histogram of all ratings, overlaid with those of the rows that selections keep: bars for one selection, outlines
/// for several.
#[derive(Clone, Debug, PartialEq)]
pub struct RatingHistogram<'a> {
    /// The title.
    pub title: String,
    /// All ratings.
    pub ratings: &'a [f64],
    /// The selections.
    pub kept: &'a [Kept],
}

/// Plots a histogram, 1600 × 960 pixels.
///
/// # Errors
/// If no rating is finite or a kept row is out of range.
pub fn rating_histogram(histogram: &RatingHistogram<'_>) -> Result<Raster> {
    rendered(histogram)
}

/// The histogram as an SVG element without its title, in the colors of the page around it.
///
/// # Errors
/// As [`rating_histogram`].
pub fn rating_histogram_svg(histogram: &RatingHistogram<'_>) -> Result<String> {
    scalable(histogram)
}

impl Draw for RatingHistogram<'_> {
    fn title(&self) -> &str {
        &self.title
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts and bins of a chart"
    )]
    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()> {
        const BINS: usize = 60;
        let ratings = self.ratings;
        let Some(x) = range(ratings.iter().copied(), 0.0) else {
            return Err(Error::not_finite("the histogram has no finite rating"));
        };
        let all_kept = self.kept.iter().flat_map(|kept| &kept.rows);
        if let Some(row) = all_kept.clone().find(|&&row| row as usize >= ratings.len()) {
            return Err(Error::invalid(format!(
                "row {row} is kept, but there are only {} ratings",
                ratings.len()
            )));
        }
        let bin_width = (x.1 - x.0) / BINS as f64;
        let count = |values: &mut dyn Iterator<Item = f64>| {
            let mut counts = [0u64; BINS];
            for value in values.filter(|value| value.is_finite()) {
                counts[(((value - x.0) / bin_width) as usize).min(BINS - 1)] += 1;
            }
            counts
        };
        let all = count(&mut ratings.iter().copied());
        let top = all.iter().copied().max().unwrap_or(0).max(1) as f64 * 1.08;
        let mut chart = chart(canvas, ("rating", "rows"), x, (0.0, top))?;
        let mut bars =
            |counts: &[u64; BINS], color: RGBColor, name: String| -> Result<()> {
                let bar = |(bin, &count): (usize, &u64)| {
                    let left = x.0 + bin as f64 * bin_width;
                    let corners = [(left, 0.0), (left + bin_width, count as f64)];
                    let mut bar = Rectangle::new(corners, color.filled());
                    bar.set_margin(0, 0, 1, 1);
                    bar
                };
                let filled = counts.iter().enumerate().filter(|(_, count)| **count > 0).map(bar);
                chart.draw_series(filled).map_err(drawing_failed)?.label(name).legend(move |(x, y)| {
                    Rectangle::new([(x + 10, y - 11), (x + 36, y + 11)], color.filled())
                });
                Ok(())
            };
        let rows = |count: usize| grouped(&count.to_string());
        bars(&all, ALL_ROWS, format!("all {} rows", rows(ratings.len())))?;
        let counts_of = |kept: &Kept| count(&mut kept.rows.iter().map(|&row| ratings[row as usize]));
        let name_of = |kept: &Kept| match kept.name.is_empty() {
            true => format!("{} kept", rows(kept.rows.len())),
            false => drawable(&format!("{}: {}", kept.name, rows(kept.rows.len()))),
        };
        if let [kept] = self.kept {
            bars(&counts_of(kept), PALETTE[0], name_of(kept))?;
        } else {
            for (index, kept) in self.kept.iter().enumerate() {
                let style = PALETTE[index % PALETTE.len()].stroke_width(4);
                let steps: Vec<(f64, f64)> = counts_of(kept)
                    .iter()
                    .enumerate()
                    .flat_map(|(bin, &count)| {
                        [bin, bin + 1].map(|edge| (x.0 + edge as f64 * bin_width, count as f64))
                    })
                    .collect();
                chart
                    .draw_series(line(&steps, style))
                    .map_err(drawing_failed)?
                    .label(name_of(kept))
                    .legend(move |(x, y)| PathElement::new([(x + 4, y), (x + 40, y)], style));
            }
        }
        let mass = |bins: &[u64]| bins.iter().sum::<u64>();
        let left_is_heavier = mass(&all[..BINS / 2]) > mass(&all[BINS / 2..]);
        legend(
            &mut chart,
            if left_is_heavier { SeriesLabelPosition::UpperRight } else { SeriesLabelPosition::UpperLeft },
        )
    }
}
