//! Corrupts a caption without another record.

use super::Flaw;
use crate::engine::{Purpose, Random};

/// First stream index under [`Purpose::Draw`] for corrupting captions.
const CAPTIONS: u64 = 4 << 48;

/// Captions that are true of nearly every image and say nothing about it.
const GENERIC: &[&str] = &[
    "an image",
    "a photo",
    "a picture",
    "image",
    "photo",
    "an image of something",
    "a picture of an object",
    "a photo of a thing",
    "an illustration",
    "a nice picture",
    "some objects",
    "a scene",
    "a picture of a scene with objects",
    "this is an image",
    "an image with a background",
    "a beautiful image of something",
];

/// Typical alt texts of web pages; each `#` is a digit.
const BOILERPLATE: &[&str] = &[
    "IMG_####.jpg",
    "DSC_####.JPG",
    "DSC0####",
    "image-####x###.png",
    "screenshot-20##-0#-1#.png",
    "photo_20##-0#-1#_1#-3#-2#.jpg",
    "product-image-#####",
    "SKU ######",
    "Click here to buy",
    "Click to enlarge",
    "Add to cart",
    "Buy now - free shipping on orders over $##",
    "Sale! ##% off everything this week",
    "Stock photo, royalty free image, vector illustration",
    "Royalty-free stock vector ID: #########",
    "Image # of ##",
    "Thumbnail for version as of 1#:3#, 1# May 20##",
    "© 20## All rights reserved.",
    "Photo by user####",
    "Share on Facebook",
    "Pin this image",
    "Loading…",
    "View larger image",
    "logo",
    "untitled",
    "Related posts",
    "Read more »",
    "Subscribe to our newsletter",
];

/// Captions of no image in particular, in languages other than English.
const FOREIGN: &[&str] = &[
    "Ein Hund läuft am Strand entlang.",
    "Drei Kinder spielen im Garten hinter dem Haus.",
    "Eine alte Brücke über den Fluss im Herbst",
    "Der Markt am Samstagmorgen in der Altstadt",
    "Un perro corre por la playa.",
    "Una mujer lee un libro junto a la ventana.",
    "Vista de la plaza mayor al anochecer",
    "Dos bicicletas apoyadas en una pared blanca",
    "Un chat dort sur le canapé du salon.",
    "La rue principale du village sous la pluie",
    "Des enfants jouent au football dans la cour.",
    "Une tasse de café sur une table en bois",
    "Un gatto dorme sul divano.",
    "La spiaggia d'inverno vista dalla collina",
    "Due amici camminano lungo il fiume.",
    "Uma rua estreita com casas coloridas",
    "O barco parado no porto ao amanhecer",
    "Crianças brincam na praça da cidade.",
    "Een fiets tegen de muur van een oud huis",
    "Stary most nad rzeką jesienią",
    "Собака бежит по пляжу.",
    "Старый дом на берегу реки зимой",
    "Dağların arasında küçük bir köy",
    "一只狗在沙滩上奔跑。",
    "窗边的桌子上放着一杯咖啡。",
    "犬が砂浜を走っている。",
    "강가에 있는 오래된 다리",
    "مدينة قديمة على ضفة النهر",
];

/// The corrupted caption. `None` if the flaw does not corrupt captions alone or does not apply to this caption: one of
/// fewer than three words (or, without spaces, six characters) cannot be truncated. Deterministic in (`seed`,
/// `record`).
pub fn corrupt_caption(caption: &str, flaw: Flaw, seed: u64, record: u64) -> Option<String> {
    let mut random = Random::new(seed, Purpose::Draw, CAPTIONS + record);
    match flaw {
        Flaw::TruncatedCaption => truncate(caption, &mut random),
        Flaw::GenericCaption => other_phrase(caption, GENERIC, &mut random),
        Flaw::BoilerplateCaption => other_phrase(caption, BOILERPLATE, &mut random),
        Flaw::ForeignCaption => other_phrase(caption, FOREIGN, &mut random),
        _ => None,
    }
}

/// Whether [`corrupt_caption`] corrupts captions by this flaw.
pub(super) fn is_of_captions(flaw: Flaw) -> bool {
    matches!(
        flaw,
        Flaw::TruncatedCaption | Flaw::GenericCaption | Flaw::BoilerplateCaption | Flaw::ForeignCaption
    )
}

/// Keeps the first quarter to half of the words or, of a caption with fewer than three words, of the characters.
fn truncate(caption: &str, random: &mut Random) -> Option<String> {
    let words: Vec<&str> = caption.split_whitespace().collect();
    let (count, smallest) = match words.len() {
        0..3 => (caption.chars().count(), 6),
        count => (count, 3),
    };
    if count < smallest {
        return None;
    }
    let fewest = count.div_ceil(4);
    let kept = fewest + random.below((count / 2).saturating_sub(fewest) as u64 + 1) as usize;
    let start = match words.len() {
        0..3 => caption.chars().take(kept).collect(),
        _ => words[..kept].join(" "),
    };
    // A caption that ends with a period does not look truncated.
    let start = start.trim_end_matches(|letter: char| !letter.is_alphanumeric());
    (!start.is_empty()).then(|| start.to_owned())
}

/// A random phrase that is not the caption, with digits filled in.
fn other_phrase(caption: &str, phrases: &[&str], random: &mut Random) -> Option<String> {
    let others: Vec<&str> =
        phrases.iter().copied().filter(|phrase| !phrase.eq_ignore_ascii_case(caption.trim())).collect();
    let phrase = others[random.below(others.len() as u64) as usize];
    let digit = |random: &mut Random| char::from(b'0' + random.below(10) as u8);
    Some(phrase.chars().map(|letter| if letter == '#' { digit(random) } else { letter }).collect())
}
