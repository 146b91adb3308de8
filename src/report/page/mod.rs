//! Self-contained HTML pages: tables, charts and contact sheets. A page loads nothing, so it can be opened from a disk,
//! mailed and archived. It follows the reader's light or dark setting, and can be printed.

mod sheet;

use maud::{DOCTYPE, Markup, PreEscaped, html};

pub(crate) use sheet::{Sheet, SheetDecile, Tile, data_address};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Page {
    /// The title.
    pub title: String,
    /// The introduction, one paragraph per entry.
    pub lead: Vec<String>,
    /// The sections, each listed in the table of contents.
    pub sections: Vec<Section>,
}

/// A section of a page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Section {
    /// The title, unique within the page.
    pub title: String,
    /// The content, in order.
    pub parts: Vec<Content>,
}

/// An element of a section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// A heading within the section.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// A table whose rows the reader can sort.
    Table(Table),
    /// A chart: an SVG element with a caption.
    Chart {
        /// As returned by [`loss_curves_svg`](super::plot::loss_curves_svg); inserted verbatim.
        svg: String,
        /// The caption.
        caption: String,
    },
    /// Images by rating.
    Sheet(Sheet),
    /// Content that is collapsed until the reader opens it; expanded in print.
    Folded(String, Vec<Content>),
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    /// The column titles.
    pub header: Vec<String>,
    /// The rows, each with as many cells as the header.
    pub rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A number as text, and its sort key.
    Number(String, f64),
    /// A mean with half its interval, plotted over the range of the column.
    Interval {
        /// The mean.
        mean: f64,
        /// Half its interval, if known.
        half: Option<f64>,
        /// The lowest and highest end in the column, 0 included.
        range: (f64, f64),
    },
    /// A fraction from 0 to 1 as a bar from a baseline, which is 0 for a plain bar.
    Bar {
        /// The fraction.
        share: f64,
        /// The baseline.
        from: f64,
        /// The text.
        text: String,
    },
    /// Fractions of a whole, each with its name and the index of its kind, which determines its color.
    Shares(Vec<(String, usize, f64)>),
    /// No value.
    Nothing,
}

impl Page {
    /// Renders the page.
    pub(crate) fn to_html(&self) -> String {
        let anchor = |at: usize| format!("part-{at}");
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta http-equiv="Content-Security-Policy"
                        content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        h1 { (self.title) }
                        @for text in &self.lead { p { (text) } }
                        nav aria-label="Contents" {
                            @for (at, section) in self.sections.iter().enumerate() {
                                a href={ "#" (anchor(at)) } { (section.title) }
                            }
                        }
                    }
                    main {
                        @for (at, section) in self.sections.iter().enumerate() {
                            section id=(anchor(at)) {
                                h2 { (section.title) }
                                @for (part, number) in section.parts.iter().zip(0..) { (part.markup(at * 1000 + number)) }
                            }
                        }
                    }
                    dialog id="pair" aria-label="A pair and its neighbors in rank" {
                        div id="pair-strip" {}
                        figure { img id="pair-image" alt="" hidden; figcaption id="pair-text" {} }
                        p.keys { "← and → go along the ranking, Esc closes." }
                        form method="dialog" { button { "Close" } }
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        }
        .into_string()
    }
}

impl Content {
    /// Renders the element. `number` distinguishes it from the page's other elements.
    fn markup(&self, number: usize) -> Markup {
        match self {
            Self::Heading(text) => html! { h3 { (text) } },
            Self::Text(text) => html! { p { (text) } },
            Self::Table(table) => table.markup(),
            Self::Chart { svg, caption } => html! {
                figure.chart { (PreEscaped(svg)) figcaption { (caption) } }
            },
            Self::Sheet(sheet) => sheet.markup(number),
            Self::Folded(title, parts) => html! {
                details {
                    summary { (title) }
                    @for (part, at) in parts.iter().zip(1..) { (part.markup(number * 1000 + at)) }
                }
            },
        }
    }
}

impl Table {
    fn markup(&self) -> Markup {
        let words = |at: usize| {
            self.rows.iter().any(|row| matches!(row.get(at), Some(Cell::Text(_) | Cell::Shares(_))))
        };
        html! {
            div.table {
                table {
                    thead { tr {
                        @for (at, name) in self.header.iter().enumerate() {
                            th.number[!words(at)] scope="col" { button type="button" title="sort" { (name) } }
                        }
                    } }
                    tbody { @for row in &self.rows { tr { @for cell in row { (cell.markup()) } } } }
                }
            }
        }
    }
}

impl Cell {
    fn markup(&self) -> Markup {
        match self {
            Self::Text(text) => html! { td data-sort=(text) { (text) } },
            Self::Number(text, value) => html! { td.number data-sort=(value) { (text) } },
            Self::Nothing => html! { td.number data-sort="" { "–" } },
            Self::Interval { mean, half, range } => {
                let width = (range.1 - range.0).max(f64::MIN_POSITIVE);
                let x_of = |value: f64| format!("{:.2}", 100.0 * (value - range.0) / width);
                let half_shown = half.unwrap_or(0.0);
                let (low, high) = (mean - half_shown, mean + half_shown);
                let kind = match (high < 0.0, low > 0.0) {
                    _ if half.is_none() => "open",
                    (true, _) => "below",
                    (_, true) => "above",
                    _ => "neither",
                };
                html! {
                    td.number.interval data-sort=(mean) {
                        svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                            line.zero x1=(x_of(0.0)) x2=(x_of(0.0)) y1="0" y2="10" {}
                            line.(kind) x1=(x_of(low)) x2=(x_of(high)) y1="5" y2="5" {}
                            line.(kind).mean x1=(x_of(*mean)) x2=(x_of(*mean)) y1="1" y2="9" {}
                        }
                        span { (signed(*mean)) @if let Some(half) = half { " ± " (format!("{half:.4}")) } }
                    }
                }
            }
            Self::Bar { share, from, text } => {
                let (left, width) = (share.min(*from), (share - from).abs());
                let kind = if share < from { "low" } else { "high" };
                html! {
                    td.number.bar data-sort=(share) {
                        span.(kind) style=(format!("left:{:.2}%;width:{:.2}%", 100.0 * left, 100.0 * width)) {}
                        b { (text) }
                    }
                }
            }
            Self::Shares(shares) => html! {
                td.shares data-sort=(shares.first().map_or(0.0, |(_, _, share)| *share)) {
                    div {
                        @for (name, kind, share) in shares {
                            span class=(format!("kind-{kind}")) style=(format!("width:{:.3}%", 100.0 * share))
                                title=(format!("{name}: {:.1}%", 100.0 * share)) {}
                        }
                    }
                }
            },
        }
    }
}

/// A number with its sign; the minus is U+2212.
fn signed(value: f64) -> String {
    format!("{value:+.4}").replace('-', "−")
}

/// The legend of [`Cell::Shares`]: names with the indices of their colors.
pub(crate) fn legend<'a>(kinds: impl IntoIterator<Item = (&'a str, usize)>) -> Content {
    let svg = html! {
        span.legend { @for (name, kind) in kinds { span { i class=(format!("kind-{kind}")) {} (name) } } }
    };
    Content::Chart { svg: svg.into_string(), caption: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_and_nothing_is_loaded() {
        let cells = vec![
            Cell::Text("<script>alert(1)</script>".to_owned()),
            Cell::Interval { mean: -0.2, half: Some(0.1), range: (-0.4, 0.4) },
            Cell::Bar { share: 0.9, from: 0.5, text: "0.90".to_owned() },
            Cell::Shares(vec![("clean".to_owned(), 0, 0.75), ("noise".to_owned(), 2, 0.25)]),
            Cell::Number("1 234".to_owned(), 1234.0),
            Cell::Nothing,
        ];
        let table = Table { header: vec!["a&b".to_owned(); 6], rows: vec![cells] };
        let parts = vec![Content::Folded("more".to_owned(), vec![Content::Table(table)])];
        let page = Page {
            title: "A <b> of \"c\"".to_owned(),
            lead: vec!["5 < 6".to_owned()],
            sections: vec![Section { title: "Numbers".to_owned(), parts }],
        };
        let html = page.to_html();
        assert!(html.contains("<title>A &lt;b&gt; of") && html.contains("<p>5 &lt; 6</p>"));
        assert!(!html.contains("<script>alert") && html.contains("&lt;script&gt;alert"));
        // The interval extends an eighth to either side of a quarter, entirely below 0.
        assert!(html.contains(r#"<line class="below" x1="12.50" x2="37.50""#), "{html}");
        assert!(html.contains("left:50.00%;width:40.00%") && html.contains("noise: 25.0%"));
        assert!(html.contains("−0.2000 ± 0.1000") && html.contains(r#"data-sort="1234""#));
        for word in ["http:", "https:", "src=\"/", "url(", "@import"] {
            assert!(!html.contains(word), "the page loads something: {word}");
        }
    }
}
