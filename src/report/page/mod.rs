//! One self-contained HTML page: tables, charts and sheets of images. It loads nothing, so that it opens from a disk, is sent
//! by mail and is kept beside a paper; light and dark follow the reader's setting, and it can be printed.

mod sheet;

use maud::{DOCTYPE, Markup, PreEscaped, html};

pub(crate) use sheet::{Sheet, SheetDecile, Tile, data_address};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Page {
    /// What it is of.
    pub title: String,
    /// What to know before all, a paragraph each.
    pub lead: Vec<String>,
    /// Its parts, each with a place in the list of contents.
    pub sections: Vec<Section>,
}

/// A part of a page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Section {
    /// Its name, different from those of the others.
    pub title: String,
    /// What it shows, in order.
    pub parts: Vec<Content>,
}

/// What a section shows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// A heading within the section.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// A table, whose rows the reader can sort.
    Table(Table),
    /// A chart: an SVG element, and what it shows.
    Chart {
        /// As [`loss_curves_svg`](super::plot::loss_curves_svg) gives it; it goes into the page as it is.
        svg: String,
        /// Under it.
        caption: String,
    },
    /// Images by rating.
    Sheet(Sheet),
    /// Parts that are shown when the reader opens them; open on paper.
    Folded(String, Vec<Content>),
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    /// Over the columns.
    pub header: Vec<String>,
    /// As many cells each as the header.
    pub rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A number as it is shown, and by what it is sorted.
    Number(String, f64),
    /// A number with half its interval, and the range that the column's image spans.
    Interval {
        /// The number.
        mean: f64,
        /// Half its interval, if it is known.
        half: Option<f64>,
        /// The lowest and highest end in the column, 0 included.
        range: (f64, f64),
    },
    /// A share from 0 to 1 as a bar from a middle, which is 0 for a plain bar.
    Bar {
        /// The share.
        share: f64,
        /// Where the bar begins.
        from: f64,
        /// As it is shown.
        text: String,
    },
    /// Shares of a whole, each with its name and its place among all kinds, which gives its color.
    Shares(Vec<(String, usize, f64)>),
    /// There is none.
    Nothing,
}

impl Page {
    /// The page as a file.
    pub(crate) fn to_html(&self) -> String {
        let place = |at: usize| format!("part-{at}");
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
                                a href={ "#" (place(at)) } { (section.title) }
                            }
                        }
                    }
                    main {
                        @for (at, section) in self.sections.iter().enumerate() {
                            section id=(place(at)) {
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
    /// `number` tells it from the page's other parts.
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
                let place = |value: f64| format!("{:.2}", 100.0 * (value - range.0) / width);
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
                            line.zero x1=(place(0.0)) x2=(place(0.0)) y1="0" y2="10" {}
                            line.(kind) x1=(place(low)) x2=(place(high)) y1="5" y2="5" {}
                            line.(kind).mean x1=(place(*mean)) x2=(place(*mean)) y1="1" y2="9" {}
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

/// A number with its sign, a true minus.
fn signed(value: f64) -> String {
    format!("{value:+.4}").replace('-', "−")
}

/// The legend of what [`Cell::Shares`] shows: a name and its color's number each.
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
        // The interval lies from a quarter less an eighth to a quarter and an eighth, wholly below 0.
        assert!(html.contains(r#"<line class="below" x1="12.50" x2="37.50""#), "{html}");
        assert!(html.contains("left:50.00%;width:40.00%") && html.contains("noise: 25.0%"));
        assert!(html.contains("−0.2000 ± 0.1000") && html.contains(r#"data-sort="1234""#));
        for word in ["http:", "https:", "src=\"/", "url(", "@import"] {
            assert!(!html.contains(word), "the page loads something: {word}");
        }
    }
}
