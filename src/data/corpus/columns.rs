//! Finds the columns of ids, image paths and captions in a table: by the configured names, or by conventional ones.
//!
//! A column is looked up by its configured name first. If that is the default (`id`, `image_save_path`, `caption`)
//! and there is no such column, the first conventional name that the header has is used, ignoring case. A column of
//! URLs is never used for images. Without a column of ids, the image path, as written, is the id.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Mutex, PoisonError},
};

use crate::jobs::marker::Marker;

/// Names of the three columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnNames {
    /// The column of ids. If it is the default, `id`, and there is no such column, [`ID_NAMES`] apply.
    pub id: String,
    /// The column of image paths. If it is the default, `image_save_path`, and there is no such column,
    /// [`IMAGE_NAMES`] apply.
    pub image: String,
    /// The column of captions. If it is the default, `caption`, and there is no such column, [`CAPTION_NAMES`] apply.
    pub caption: String,
}

impl Default for ColumnNames {
    /// The names that the upstream code uses: `id`, `image_save_path`, `caption`.
    fn default() -> Self {
        Self {
            id: ID_NAMES[0].to_owned(),
            image: IMAGE_NAMES[0].to_owned(),
            caption: CAPTION_NAMES[0].to_owned(),
        }
    }
}

/// Conventional names of the column of ids, in order of preference; the first is the default.
pub const ID_NAMES: [&str; 6] = ["id", "key", "uid", "uuid", "sample_id", "__key__"];

/// Conventional names of the column of image paths, in order of preference; the first is the default.
pub const IMAGE_NAMES: [&str; 17] = [
    "image_save_path",
    "image_path",
    "image",
    "file_name",
    "filename",
    "path",
    "file_path",
    "filepath",
    "image_file",
    "image_filename",
    "img_path",
    "img",
    "file",
    "local_path",
    "image_bytes",
    "jpg",
    "png",
];

/// Conventional names of the column of captions, in order of preference; the first is the default.
pub const CAPTION_NAMES: [&str; 10] = [
    "caption",
    "cogvlm_caption",
    "text",
    "prompt",
    "description",
    "alt_text",
    "top_caption",
    "raw_caption",
    "captions",
    "txt",
];

/// Names of columns that hold URLs, which are not fetched.
const URL_NAMES: [&str; 4] = ["url", "image_url", "img_url", "urls"];

/// Formats column names for a message: `a`, `b`, `c`.
pub(crate) fn list_columns<S: AsRef<str>>(columns: &[S]) -> String {
    columns.iter().map(|column| format!("`{}`", column.as_ref())).collect::<Vec<_>>().join(", ")
}

/// The index of the column `name`.
///
/// # Errors
/// If there are two such columns.
fn named(header: &[String], name: &str) -> Result<Option<usize>, String> {
    let mut indices = header.iter().enumerate().filter(|(_, column)| *column == name).map(|(index, _)| index);
    match (indices.next(), indices.next()) {
        (Some(first), Some(second)) => Err(format!(
            "two columns are called `{name}` (columns {} and {}); rename one",
            first + 1,
            second + 1
        )),
        (found, _) => Ok(found),
    }
}

/// A column found by convention instead of the default name.
pub(super) struct Taken {
    what: &'static str,
    index: usize,
    /// Other columns with conventional names.
    passed_over: Vec<usize>,
}

/// One of the three columns and its conventional names.
#[derive(Clone, Copy)]
struct Convention {
    what: &'static str,
    names: &'static [&'static str],
}

const IDS: Convention = Convention { what: "id", names: &ID_NAMES };
const IMAGES: Convention = Convention { what: "image", names: &IMAGE_NAMES };
const CAPTIONS: Convention = Convention { what: "caption", names: &CAPTION_NAMES };

impl Convention {
    /// The column `name`; if that is the default and there is no such column, the first conventional one.
    fn find(self, header: &[String], name: &str) -> Result<Option<(usize, Option<Taken>)>, String> {
        if let Some(index) = named(header, name)? {
            return Ok(Some((index, None)));
        }
        if name != self.names[0] {
            return Ok(None);
        }
        let mut found: Vec<usize> = Vec::new();
        for known in self.names {
            let alike: Vec<usize> =
                (0..header.len()).filter(|&index| header[index].eq_ignore_ascii_case(known)).collect();
            // A name in another case is accepted; two such columns are ambiguous.
            let exact = alike.iter().copied().filter(|&index| header[index] == *known).collect::<Vec<_>>();
            match (&exact[..], &alike[..]) {
                ([index], _) | ([], [index]) => found.push(*index),
                ([], []) => {}
                (_, all) if found.is_empty() => {
                    let columns: Vec<&str> = all.iter().map(|&index| header[index].as_str()).collect();
                    return Err(format!(
                        "the column of {1}s is ambiguous: {0}; {2}",
                        list_columns(&columns),
                        self.what,
                        self.how_to_name()
                    ));
                }
                (_, all) => found.extend(all),
            }
        }
        let Some(&index) = found.first() else { return Ok(None) };
        let taken = Taken { what: self.what, index, passed_over: found[1..].to_vec() };
        Ok(Some((index, Some(taken))))
    }

    /// How to set the name of this column, for messages.
    fn how_to_name(self) -> String {
        let what = self.what;
        format!(
            "name the column of {what}s with --set columns.{what}=NAME, or --{what}-column NAME in commands without --set"
        )
    }

    /// The error message if there is no such column.
    fn missing(self, header: &[String], name: &str) -> String {
        let mut message = format!("there is no column `{name}`; the columns are {}", list_columns(header));
        let target = name.to_lowercase();
        let nearest = header
            .iter()
            .filter(|column| !is_url(column))
            .map(|column| (strsim::jaro_winkler(&target, column.trim().to_lowercase().as_str()), column))
            .filter(|(likeness, _)| *likeness > 0.75)
            .max_by(|left, right| left.0.total_cmp(&right.0));
        let address = header.iter().find(|column| is_url(column));
        if let (Some(column), true) = (address, self.what == IMAGES.what) {
            message.push_str(&format!(
                "; `{column}` appears to contain URLs, which are not fetched: download the images with img2dataset \
                 and pass a table of their paths, or if it contains paths, {}",
                self.how_to_name()
            ));
        } else if let [only] = header
            && let Some(separator) = only.chars().find(|c| matches!(c, '|' | ':' | ' '))
        {
            message.push_str(&format!(
                "; fields must be separated by commas, tabs or semicolons, not by {separator:?}"
            ));
        } else if let Some((_, column)) = nearest {
            message.push_str(&format!("; did you mean `{column}`? If so, {}", self.how_to_name()));
        } else {
            message.push_str(&format!("; {}", self.how_to_name()));
        }
        message
    }
}

fn is_url(column: &str) -> bool {
    URL_NAMES.iter().any(|name| column.trim().eq_ignore_ascii_case(name))
}

/// Indices of the columns of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// The column of ids; `None` if image paths are the ids.
    pub(super) id: Option<usize>,
    pub(super) image: usize,
    pub(super) caption: usize,
}

impl Columns {
    /// All of them.
    pub(super) fn all(&self) -> Vec<usize> {
        self.id.into_iter().chain([self.image, self.caption]).collect()
    }

    /// Finds the columns of the table `path` with this header. Warns once about columns found by convention.
    pub(super) fn find(path: &Path, header: &[String], names: &ColumnNames) -> Result<Self, String> {
        let (found, taken) = Self::locate(header, names)?;
        warn_of_conventions(path, header, &taken);
        if found.id.is_none() {
            warn_once(format!(
                "{}: there is no column of ids, so the path of each image, as it is written in `{}`, is its id; {}",
                path.display(),
                header[found.image],
                IDS.how_to_name()
            ));
        }
        Ok(found)
    }

    /// Finds the columns without a warning; also returns those found by convention.
    pub(super) fn locate(header: &[String], names: &ColumnNames) -> Result<(Self, Vec<Taken>), String> {
        let id = IDS.find(header, &names.id)?;
        if id.is_none() && names.id != ID_NAMES[0] {
            return Err(IDS.missing(header, &names.id));
        }
        let image = IMAGES.find(header, &names.image)?.ok_or_else(|| IMAGES.missing(header, &names.image))?;
        let caption =
            CAPTIONS.find(header, &names.caption)?.ok_or_else(|| CAPTIONS.missing(header, &names.caption))?;
        let found = Self { id: id.as_ref().map(|id| id.0), image: image.0, caption: caption.0 };
        let taken = [id.and_then(|id| id.1), image.1, caption.1].into_iter().flatten().collect();
        Ok((found, taken))
    }
}

/// The column of ids in the table `path`, or the column of image paths if it has none.
///
/// # Errors
/// If there is neither, or the column is ambiguous.
pub(crate) fn find_id(path: Option<&Path>, header: &[String], names: [&str; 2]) -> Result<usize, String> {
    let [id, image] = names;
    let (found, taken) = match IDS.find(header, id)? {
        Some(found) => found,
        None if id != ID_NAMES[0] => return Err(absent(header, id)),
        None => match IMAGES.find(header, image)? {
            Some((index, _)) => {
                if let Some(path) = path {
                    warn_once(format!(
                        "{}: there is no column of ids, so the path of each image, as it is written in `{}`, is its \
                         id; set the column of ids with --id-column NAME",
                        path.display(),
                        header[index]
                    ));
                }
                return Ok(index);
            }
            None => return Err(absent(header, id)),
        },
    };
    if let Some(path) = path {
        warn_of_conventions(path, header, &taken.into_iter().collect::<Vec<_>>());
    }
    Ok(found)
}

/// The column of image paths, if there is one.
pub(crate) fn find_image(header: &[String], name: &str) -> Option<usize> {
    IMAGES.find(header, name).ok().flatten().map(|(index, _)| index)
}

pub(crate) fn absent(header: &[String], name: &str) -> String {
    format!("there is no column `{name}`; the columns are {}", list_columns(header))
}

/// Warns about the columns found by convention.
fn warn_of_conventions(path: &Path, header: &[String], taken: &[Taken]) {
    // Tables written by this program have the columns of their input, whose reader has already warned.
    if Marker::path_for(path).exists() {
        return;
    }
    // The upstream reader also falls back to this name.
    let silent = |taken: &&Taken| header[taken.index] != CAPTION_NAMES[1] || !taken.passed_over.is_empty();
    let said: Vec<String> = taken
        .iter()
        .filter(silent)
        .map(|taken| {
            let passed: Vec<&str> = taken.passed_over.iter().map(|&index| header[index].as_str()).collect();
            let passed =
                if passed.is_empty() { String::new() } else { format!(" (not {})", list_columns(&passed)) };
            format!("using the column `{1}`{passed} for {0}s", taken.what, header[taken.index])
        })
        .collect();
    if !said.is_empty() {
        let whats: Vec<&str> = taken.iter().filter(silent).map(|taken| taken.what).collect();
        let first = whats[0];
        warn_once(format!(
            "{}: {}; to use another, pass --set columns.{first}=NAME, or --{first}-column NAME in commands without --set",
            path.display(),
            said.join(", ")
        ));
    }
}

/// Prints a warning once per process, however often the table is opened.
pub(super) fn warn_once(message: String) {
    static WARNED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    if warned.get_or_insert_default().insert(message.clone()) {
        tracing::warn!("{message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(header: &[&str]) -> Result<Columns, String> {
        let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
        Columns::find(Path::new("corpus.csv"), &header, &ColumnNames::default())
    }

    #[test]
    fn every_usual_name_is_found_in_any_case_and_the_default_comes_first() {
        let id = |name: &str| find(&[name, "image_save_path", "caption"]).unwrap().id;
        for name in ID_NAMES {
            assert_eq!((id(name), id(&name.to_uppercase())), (Some(0), Some(0)), "{name}");
        }
        assert_eq!(id("idx"), None);
        for name in IMAGE_NAMES {
            assert_eq!(find(&["id", &name.to_uppercase(), "caption"]).unwrap().image, 1);
            // The default name takes precedence over the conventional ones.
            let found = find(&["id", name, "caption", "image_save_path"]);
            assert_eq!(found.map(|found| found.image).ok(), (name != "image_save_path").then_some(3));
        }
        for name in CAPTION_NAMES {
            assert_eq!(find(&["id", "image", &name.to_uppercase()]).unwrap().caption, 2);
        }
        assert_eq!(find(&["prompt", "image", "text"]).unwrap(), Columns { id: None, image: 1, caption: 2 });
    }

    #[test]
    fn ambiguous_columns_are_refused_and_configured_names_are_exact() {
        let refused = find(&["id", "image", "Text", "TEXT"]).unwrap_err();
        assert!(refused.contains("`Text`, `TEXT`") && refused.contains("columns.caption"), "{refused}");
        // An exact match in case is not ambiguous.
        assert_eq!(find(&["id", "image", "Text", "text"]).unwrap().caption, 3);
        let header = ["key", "image", "text"].map(str::to_owned);
        let names = ColumnNames { caption: "words".to_owned(), ..ColumnNames::default() };
        let refused = Columns::find(Path::new("corpus.csv"), &header, &names).unwrap_err();
        assert!(refused.contains("no column `words`"), "{refused}");
        let names = ColumnNames { id: "name".to_owned(), ..ColumnNames::default() };
        assert!(Columns::find(Path::new("corpus.csv"), &header, &names).is_err());
    }

    #[test]
    fn urls_are_never_images() {
        for name in ["url", "URL", "image_url"] {
            let refused = find(&["key", name, "TEXT"]).unwrap_err();
            assert!(refused.contains(name) && refused.contains("img2dataset"), "{refused}");
            assert_eq!(find(&["key", name, "TEXT", "path"]).unwrap().image, 3);
        }
    }
}
