//! Statistics against values worked out by hand, tables, event files to the byte, and images.

use std::{fs, path::PathBuf};

use alchemist_engine::report::{
    EventFile, Kept, LossCurves, Raster, RatingHistogram, Series, SheetRow, TextTable, Thumbnail, auroc,
    contact_sheet, decile_samples,
    event_file::Clock,
    loss_curves, mean_percentile,
    plot::{loss_curves_svg, rating_histogram_svg},
    raster, rating_histogram, spearman,
};

fn close(value: Option<f64>, expected: f64) {
    let value = value.expect("there is a value");
    assert!((value - expected).abs() < 1e-12, "{value} is not {expected}");
}

#[test]
fn auroc_counts_pairs_in_the_right_order() {
    // Of the four (positive, negative) pairs, 0.35 > 0.1, 0.8 > 0.1 and 0.8 > 0.4 are in order, 0.35 > 0.4 is not.
    close(auroc(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]), 0.75);
    close(auroc(&[1.0, 2.0, 3.0], &[false, true, true]), 1.0);
    close(auroc(&[1.0, 2.0, 3.0], &[true, true, false]), 0.0);
    // The positive ties with one negative and lies below the other.
    close(auroc(&[1.0, 1.0, 2.0], &[true, false, false]), 0.25);
    close(auroc(&[7.0; 5], &[true, false, true, false, false]), 0.5);
    close(auroc(&[0.0, -0.0], &[true, false]), 0.5);
    close(auroc(&[f64::INFINITY, f64::NEG_INFINITY], &[true, false]), 1.0);
    assert_eq!(auroc(&[1.0, 2.0], &[true, true]), None);
    assert_eq!(auroc(&[1.0, 2.0], &[false, false]), None);
    assert_eq!(auroc(&[], &[]), None);
    assert_eq!(auroc(&[1.0, f64::NAN], &[true, false]), None);
    assert_eq!(auroc(&[1.0], &[true, false]), None);
}

#[test]
fn mean_percentile_counts_from_the_best_rated() {
    // Best and worst of four: percentiles 0 and 3/4.
    close(mean_percentile(&[3.0, 2.0, 1.0, 0.0], &[true, false, false, true]), 0.375);
    close(mean_percentile(&[1.0, 5.0], &[false, true]), 0.0);
    // Two that tie share percentiles 0 and 1/2.
    close(mean_percentile(&[1.0, 1.0], &[true, false]), 0.25);
    assert_eq!(mean_percentile(&[1.0, 2.0], &[false, false]), None);
    assert_eq!(mean_percentile(&[f64::NAN], &[true]), None);
}

#[test]
fn spearman_correlates_places() {
    close(spearman(&[1.0, 2.0, 3.0], &[10.0, 100.0, 1000.0]), 1.0);
    close(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
    // Places 1 2 3 4 5 and 1 2 3.5 5 3.5: covariance 8, variances 10 and 9.5.
    close(spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]), 8.0 / 95.0f64.sqrt());
    assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
    assert_eq!(spearman(&[1.0], &[1.0]), None);
    assert_eq!(spearman(&[1.0, 2.0], &[1.0]), None);
    assert_eq!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), None);
}

#[test]
fn numbers_stand_to_the_right_and_words_to_the_left() {
    let mut table = TextTable::new(["flaw", "AUROC", "share", "note"]);
    table.row(["noise", "0.95", "8%", "найдено"]).row(["wrong caption", "–", "12.5%", ""]).row(["ü"]);
    let expected = [
        "flaw           AUROC  share  note",
        "─────────────  ─────  ─────  ───────",
        "noise           0.95     8%  найдено",
        "wrong caption      –  12.5%",
        "ü",
    ];
    assert_eq!(table.to_string(), expected.join("\n"));
    assert_eq!(TextTable::new(["a", "b"]).to_string(), "a  b\n─  ─");
    let mut ragged = TextTable::new(["a"]);
    ragged.row(["1", "x"]);
    assert_eq!(ragged.to_string(), "a\n─  ─\n1  x");
}

fn fixed_clock() -> Clock {
    Box::new(|| 1_234_567_890.25)
}

/// Written by Python's `tensorboard` 2.21 (`RecordWriter` over serialized `Event` messages) with the same contents.
const EVENTS: &str = "\
1800000000000000a37f4b2209000090b48065d2411a0d627261696e2e4576656e743a32ed00f201\
200000000000000029eda95009000090b48065d24110012a130a110a0a6c6f73732f747261696e15\
000060403ea3060e1c00000000000000c8c1951d09000090b48065d24110ac022a0e0a0c0a05c3bc\
2fc2b515cdccccbdcd4b760a";

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn event_files_are_those_of_tensorboard_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventFile::create_with_clock(folder.path(), fixed_clock()).unwrap();
    events.scalar("loss/train", 3.5, 1).unwrap();
    events.scalar("ü/µ", -0.1, 300).unwrap();
    events.flush().unwrap();
    assert_eq!(events.path().file_name().unwrap(), "events.out.tfevents.1234567890.alchemist-engine.0");
    assert_eq!(hexadecimal(&fs::read(events.path()).unwrap()), EVENTS);
}

/// The bytes of a file with one scalar a step.
fn events_of_steps(steps: std::ops::Range<u64>) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventFile::create_with_clock(folder.path(), fixed_clock()).unwrap();
    for step in steps {
        events.scalar("loss", 1.0 / (step + 1) as f64, step).unwrap();
    }
    events.flush().unwrap();
    let path = events.path().to_owned();
    let bytes = fs::read(&path).unwrap();
    (folder, path, bytes)
}

#[test]
fn a_resumed_event_file_is_that_of_an_uninterrupted_run() {
    let (_whole_folder, _, whole) = events_of_steps(0..200);
    let (folder, path, before) = events_of_steps(0..150);
    // Killed after step 149, at any byte of the file, and resumed from a checkpoint before step 120.
    let least = events_of_steps(0..120).2.len();
    for cut in [before.len(), before.len() - 1, before.len() - 20, least + 5, least] {
        fs::write(&path, &before[..cut]).unwrap();
        let mut events = EventFile::resume_with_clock(folder.path(), 120, fixed_clock()).unwrap();
        for step in 120..200u64 {
            events.scalar("loss", 1.0 / (step + 1) as f64, step).unwrap();
        }
        events.flush().unwrap();
        assert_eq!(events.path(), path);
        assert_eq!(fs::read(&path).unwrap(), whole, "cut to {cut} bytes");
    }
}

#[test]
fn resuming_drops_what_is_damaged_and_begins_anew_where_nothing_is_whole() {
    let (folder, path, whole) = events_of_steps(0..3);
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, &damaged).unwrap();
    EventFile::resume_with_clock(folder.path(), 100, fixed_clock()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), events_of_steps(0..2).2);

    fs::write(&path, &whole[..7]).unwrap();
    let events = EventFile::resume_with_clock(folder.path(), 100, fixed_clock()).unwrap();
    assert_eq!(fs::read(events.path()).unwrap(), events_of_steps(0..0).2);

    let empty = tempfile::tempdir().unwrap();
    let events = EventFile::resume_with_clock(empty.path(), 0, fixed_clock()).unwrap();
    assert_eq!(fs::read(events.path()).unwrap(), events_of_steps(0..0).2);
    let second = EventFile::create_with_clock(empty.path(), fixed_clock()).unwrap();
    assert_ne!(second.path(), events.path(), "a second file within one second");
    assert!(EventFile::create_with_clock(&empty.path().join("absent"), fixed_clock()).is_err());
}

/// Where the images stay to be looked at.
fn image_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Pixels of exactly this color.
fn pixels_of(image: &Raster, color: [u8; 3]) -> usize {
    image.rgb().chunks_exact(3).filter(|pixel| *pixel == color).count()
}

/// Writes an image, reads it back, and checks that it is the same and that its outermost pixels are blank (text
/// that reached them would be cut off).
fn written(image: &Raster, name: &str) {
    let path = image_path(name);
    image.write_png(&path).unwrap();
    let read = image::open(&path).unwrap().into_rgb8();
    assert_eq!(read.dimensions(), (image.width(), image.height()));
    assert_eq!(read.as_raw().as_slice(), image.rgb());
    let (width, height) = read.dimensions();
    for (x, y, pixel) in read.enumerate_pixels() {
        if x < 3 || y < 3 || x + 3 >= width || y + 3 >= height {
            assert_eq!(pixel.0, [255; 3], "{name}: something touches the edge at {x}, {y}");
        }
    }
}

fn curves(smoothing: f64) -> LossCurves {
    let noise = |step: u32, series: u32| {
        let bits = step.wrapping_mul(2_654_435_761) ^ series.wrapping_mul(40_503);
        f64::from(bits.wrapping_mul(2_246_822_519) >> 16) / 65_536.0 - 0.5
    };
    let line = |index: u32, name: &str, end: f64| {
        let points = (0..2400).map(|step| {
            let value = end + (6.2 - end) * (-f64::from(step) / 420.0).exp() + 0.35 * noise(step, index);
            (f64::from(step) * 10.0, if (900..960).contains(&step) && index == 2 { f64::NAN } else { value })
        });
        Series::new(name, points.collect())
    };
    LossCurves {
        title: "Losses of the proxy and the rater".to_owned(),
        x_label: "step".to_owned(),
        y_label: "loss (nats a token)".to_owned(),
        series: vec![
            line(0, "validation", 3.3),
            line(1, "training, weighted", 2.6),
            line(2, "Verlust · потери", 4.1),
        ],
        smoothing,
    }
}

#[test]
fn loss_curves_show_every_series() {
    let image = loss_curves(&curves(0.95)).unwrap();
    written(&image, "loss_curves.png");
    for color in [[0, 114, 178], [213, 94, 0], [0, 158, 115]] {
        assert!(pixels_of(&image, color) > 2000, "{color:?}");
    }
    assert_eq!(image, loss_curves(&curves(0.95)).unwrap(), "drawing is deterministic");
    let plain = loss_curves(&curves(0.0)).unwrap();
    written(&plain, "loss_curves_plain.png");
    assert_ne!(image, plain);
    let one = Series::new("one point", vec![(3.0, 0.5)]);
    written(&loss_curves(&LossCurves { series: vec![one], ..curves(0.0) }).unwrap(), "loss_curves_point.png");
}

/// A band is drawn around its line, and the chart in the page's colors holds no color of paper or ink of its own.
#[test]
fn a_chart_has_bands_and_a_form_for_pages() {
    let line: Vec<(f64, f64)> = (0..20).map(|x| (f64::from(x), 5.0 - f64::from(x) * 0.1)).collect();
    let band = |half: f64| line.iter().map(|&(x, y)| (x, y - half, y + half)).collect();
    let chart = |half: f64| LossCurves {
        series: vec![Series { band: band(half), ..Series::new("a < b & \"c\"", line.clone()) }],
        title: "Loss <held out>".to_owned(),
        ..curves(0.0)
    };
    // Blue on white, at 16%.
    let faint = |half: f64| {
        let image = loss_curves(&chart(half)).unwrap();
        written(&image, "loss_curves_band.png");
        image.rgb().chunks(3).filter(|pixel| pixel[0] < 225 && pixel[0] > 205 && pixel[2] > 235).count()
    };
    let (narrow, wide) = (faint(0.05), faint(0.4));
    assert!(narrow > 10_000 && wide > 3 * narrow, "{narrow} and {wide} pixels of the band");

    let svg = loss_curves_svg(&chart(0.4)).unwrap();
    assert!(
        svg.starts_with("<svg viewBox=\"0 70 1600 890\" role=\"img\" aria-label=\"Loss &lt;held out&gt;\"")
    );
    assert!(svg.contains("var(--ink)") && svg.contains("var(--grid)") && svg.contains("a &lt; b &amp; "));
    assert!(svg.contains("<polygon"), "the band");
    for color in ["#222222", "#FFFFFF", "#E2E2E2", "embedded DejaVu"] {
        assert!(!svg.contains(color), "{color} is left");
    }
    assert!(svg.trim_end().ends_with("</svg>"));
}

#[test]
fn charts_without_anything_to_draw_are_refused() {
    let empty = LossCurves { series: vec![], ..curves(0.0) };
    assert_eq!(loss_curves(&empty).unwrap_err().to_string(), "the chart has no finite point");
    let gap = Series::new("gap", vec![(0.0, f64::NAN), (f64::INFINITY, 1.0)]);
    assert!(loss_curves(&LossCurves { series: vec![gap], ..curves(0.0) }).is_err());
    for smoothing in [1.0, -0.1, f64::NAN] {
        assert_eq!(
            loss_curves(&curves(smoothing)).unwrap_err().to_string(),
            format!("smoothing is {smoothing}, but must be at least 0 and below 1")
        );
    }
    assert_eq!(
        histogram("x", &[f64::NAN], &[]).unwrap_err().to_string(),
        "the histogram has no finite rating"
    );
    assert_eq!(
        histogram("x", &[1.0], &[kept("", &[1])]).unwrap_err().to_string(),
        "row 1 is kept, but there are only 1 ratings"
    );
    assert_eq!(contact_sheet("x", &[]).unwrap_err().to_string(), "a contact sheet needs at least one image");
    let wrong = Thumbnail { side: 2, rgb: vec![0; 11], caption: String::new(), rating: Some(0.0) };
    let rows = [SheetRow { label: "a".to_owned(), details: vec![], thumbnails: vec![wrong] }];
    assert_eq!(
        contact_sheet("x", &rows).unwrap_err().to_string(),
        "contact_sheet: 11 bytes are not an image of 2×2 pixels"
    );
}

fn histogram(title: &str, ratings: &[f64], kept: &[Kept]) -> alchemist_engine::error::Result<Raster> {
    rating_histogram(&RatingHistogram { title: title.to_owned(), ratings, kept })
}

fn kept(name: &str, rows: &[u32]) -> Kept {
    Kept { name: name.to_owned(), rows: rows.to_vec() }
}

/// Ratings with a hump on either side.
fn ratings() -> Vec<f64> {
    let mut ratings = Vec::new();
    for row in 0..12_000u32 {
        let spread =
            (0..6).map(|draw| f64::from((row * 6 + draw).wrapping_mul(2_654_435_761) >> 8) / 16_777_216.0);
        let centerd: f64 = spread.sum::<f64>() - 3.0;
        ratings.push(if row % 5 == 0 { centerd * 0.3 - 2.2 } else { centerd * 0.5 + 0.4 });
    }
    ratings
}

#[test]
fn the_histogram_lays_what_is_kept_over_all() {
    use alchemist_engine::select::{Keep, Strategy, select};
    let ratings = ratings();
    let strategy = Strategy::ShiftGsample { drop_top: 0.1, mean: 0.45, sigma: 0.2 };
    let selection = select(&ratings, &strategy, Keep::Share(0.5), 0).unwrap();
    let image =
        histogram("Ratings, and what shift-gsample keeps", &ratings, &[kept("", &selection.kept)]).unwrap();
    written(&image, "rating_histogram.png");
    let (all, kept) = (pixels_of(&image, [190, 198, 206]), pixels_of(&image, [0, 114, 178]));
    assert!(all > 20_000 && kept > 20_000, "{all} pixels of all, {kept} of kept");
    let whole = histogram("Ratings", &ratings, &[]).unwrap();
    assert_eq!(pixels_of(&whole, [0, 114, 178]), 0);
    // Half of the rows are kept, so half of the bars' area is covered.
    let share = kept as f64 / pixels_of(&whole, [190, 198, 206]) as f64;
    assert!((share - 0.5).abs() < 0.03, "{share}");
    written(&histogram("One rating only", &[0.25; 10], &[]).unwrap(), "rating_histogram_one.png");
    // Several are outlined over bars of all.
    let best = select(&ratings, &Strategy::TopK, Keep::Share(0.5), 0).unwrap();
    let several = [self::kept("shift-gsample", &selection.kept), self::kept("top-k", &best.kept)];
    let image = histogram("Ratings, and what is kept", &ratings, &several).unwrap();
    written(&image, "rating_histogram_several.png");
    for color in [[0, 114, 178], [213, 94, 0]] {
        let pixels = pixels_of(&image, color);
        assert!((1000..20_000).contains(&pixels), "{pixels} of {color:?}");
    }
    let svg = RatingHistogram { title: "Ratings".to_owned(), ratings: &ratings, kept: &several };
    assert!(rating_histogram_svg(&svg).unwrap().contains("top-k: 6000"));
}

fn thumbnail(row: u32, side: u32, caption: &str, rating: f64) -> Thumbnail {
    let mut rgb = Vec::new();
    for y in 0..side {
        for x in 0..side {
            let (dx, dy) = (x as i32 - side as i32 / 2, y as i32 - side as i32 / 2);
            let radius = (side * (3 + row % 4) / 14) as i32;
            let inside = dx * dx + dy * dy < radius * radius;
            let hue = (row * 47 % 200) as u8;
            rgb.extend(if inside {
                [230 - hue, 40 + hue, 90]
            } else {
                [235, 235, 200u8.saturating_add(hue / 4)]
            });
        }
    }
    Thumbnail { side, rgb, caption: caption.to_owned(), rating: Some(rating) }
}

#[test]
fn the_contact_sheet_has_a_row_a_decile() {
    let ratings = ratings();
    let captions = [
        "a red circle on a pale ground",
        "Ein außerordentlich langer Satz über Größe, Farbe und Hintergrund des Kreises",
        "красный круг на светлом фоне",
        "κόκκινος κύκλος σε ανοιχτό φόντο",
        "空に浮かぶ赤い丸 red",
        "",
        "two\nlines\tand a tab",
        "Donaudampfschifffahrtsgesellschaftskapitänsmütze",
    ];
    let samples = decile_samples(&ratings, 8).unwrap();
    let rows: Vec<SheetRow> = samples
        .iter()
        .map(|sample| {
            let thumbnails = sample.rows.iter().zip(captions).enumerate().map(|(column, (&row, caption))| {
                let side = [64, 144, 72, 48, 100, 256, 64, 64][column];
                thumbnail(row, side, caption, ratings[row as usize])
            });
            sample.sheet_row(thumbnails.collect())
        })
        .collect();
    assert_eq!(rows.len(), 10);
    let sheet = contact_sheet("Deciles of the ranking, best-rated first", &rows).unwrap();
    written(&sheet, "contact_sheet.png");
    let few =
        contact_sheet("A title that is far too long for a sheet of only one image", &rows[..1]).unwrap();
    written(&few, "contact_sheet_row.png");
    let narrow = SheetRow { thumbnails: rows[0].thumbnails[..1].to_vec(), ..rows[0].clone() };
    written(&contact_sheet("A title that is far too long", &[narrow]).unwrap(), "contact_sheet_one.png");
    // Without labels and ratings no room is kept for them.
    let mut bare = rows[0].clone();
    bare.label.clear();
    bare.details.clear();
    bare.thumbnails.iter_mut().for_each(|thumbnail| thumbnail.rating = None);
    let (bare, whole) =
        (contact_sheet("Bare", &[bare]).unwrap(), contact_sheet("Whole", &rows[..1]).unwrap());
    assert_eq!(bare.width(), 8 * (144 + 14) - 14 + 2 * 28);
    assert!(bare.width() < whole.width() && bare.height() < whole.height());
    written(&bare, "contact_sheet_bare.png");
}

#[test]
fn decile_samples_are_evenly_spaced_and_in_order() {
    let ratings: Vec<f64> = (0..100).map(f64::from).collect();
    let samples = decile_samples(&ratings, 2).unwrap();
    assert_eq!(samples.len(), 10);
    assert_eq!((samples[0].highest, samples[0].lowest), (99.0, 90.0));
    assert_eq!(samples[0].rows, [97, 92]);
    assert_eq!((samples[9].highest, samples[9].lowest), (9.0, 0.0));
    let few = decile_samples(&[1.0, 3.0, 2.0], 8).unwrap();
    assert_eq!(few.iter().map(|sample| sample.decile).collect::<Vec<_>>(), [0, 3, 6]);
    assert_eq!(few.iter().map(|sample| sample.rows.clone()).collect::<Vec<_>>(), [[1], [2], [0]]);
    assert!(decile_samples(&[], 3).is_err());
}

#[test]
fn text_is_made_to_fit_and_missing_glyphs_become_dots() {
    assert_eq!(raster::drawable("a\nb\t猫é"), "a b ·é");
    let text = "a caption that is rather long";
    let width = raster::text_width(text, 15.0);
    assert_eq!(raster::shortened(text, 15.0, width + 0.1), text);
    let short = raster::shortened(text, 15.0, width * 0.6);
    assert!(short.ends_with('…') && text.starts_with(short.trim_end_matches('…')), "{short}");
    assert!(raster::text_width(&short, 15.0) <= width * 0.6);
    assert_eq!(raster::shortened(text, 15.0, 1.0), "");
    let lines = raster::wrapped(text, 15.0, width * 0.6, 2);
    assert_eq!(lines.join(" "), text);
    let lines = raster::wrapped(text, 15.0, width * 0.35, 2);
    assert!(lines.len() == 2 && lines[1].ends_with('…'), "{lines:?}");
    assert!(lines.iter().all(|line| raster::text_width(line, 15.0) <= width * 0.35));
    assert!(raster::wrapped("", 15.0, 100.0, 2).is_empty());
}
