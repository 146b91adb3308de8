//! Shapes of scenes, each made of a few painted parts, in coordinates from -1 to 1, y down.

use super::color::{
    BLACK, BLUE, BROWN, Color, GRAY, GREEN, NamedColor, ORANGE, PINK, PURPLE, RED, TURQUOISE, WHITE, YELLOW,
    between, chance, darker, lighter, mix, pick, squared_distance,
};
use super::raster::{Contour, Point, TURN, direction, ellipse, rectangle};
use crate::engine::Random;

/// Where a shape may be placed in a landscape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habitat {
    Anywhere,
    Sky,
    Ground,
    Water,
}

/// How the main color of a shape is applied.
#[derive(Clone, Copy, Debug)]
pub(super) enum Paint {
    /// A single color.
    Solid(Color),
    /// A gradient from the first color at the left or top to the second at the right or bottom.
    Fade { from: Color, to: Color, across: bool },
    /// Bands of two colors, `width` wide.
    Striped { first: Color, second: Color, width: f64, slope: f64 },
    /// Dots of the second color on the first, with spacing `period`.
    Spotted { first: Color, second: Color, period: f64 },
}

impl Paint {
    /// The color at a point in the shape's coordinates.
    pub(super) fn at(&self, x: f64, y: f64) -> Color {
        match *self {
            Self::Solid(color) => color,
            Self::Fade { from, to, across } => {
                let along = if across { x } else { y };
                mix(from, to, ((along + 1.0) / 2.0).clamp(0.0, 1.0))
            }
            Self::Striped { first, second, width, slope } => {
                let along = (x + slope * y) / (2.0 * width);
                if along - along.floor() < 0.5 { first } else { second }
            }
            Self::Spotted { first, second, period } => {
                let row = (y / period).floor();
                let shifted = x / period + 0.5 * (row - 2.0 * (row / 2.0).floor());
                let (across, down) = (shifted - shifted.floor() - 0.5, y / period - row - 0.5);
                if across * across + down * down < 0.09 { second } else { first }
            }
        }
    }
}

/// A painted part of a shape; later parts cover earlier ones.
pub(super) struct Part {
    pub(super) contours: Vec<Contour>,
    pub(super) paint: Paint,
}

/// A shape, with its words for captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Heart,
    Diamond,
    Ring,
    Cross,
    House,
    Tree,
    FirTree,
    Boat,
    Sun,
    Moon,
    Fish,
    Flower,
    Car,
    Cloud,
    Mountain,
    Balloon,
    Mushroom,
    Apple,
    Butterfly,
    Bird,
}

use Shape::{
    Apple, Balloon, Bird, Boat, Butterfly, Car, Circle, Cloud, Cross, Diamond, FirTree, Fish, Flower, Heart,
    House, Moon, Mountain, Mushroom, Ring, Square, Star, Sun, Tree, Triangle,
};

/// All shapes.
pub(super) const ALL: &[Shape] = &[
    Circle, Square, Triangle, Star, Heart, Diamond, Ring, Cross, House, Tree, FirTree, Boat, Sun, Moon, Fish,
    Flower, Car, Cloud, Mountain, Balloon, Mushroom, Apple, Butterfly, Bird,
];

impl Shape {
    /// Singular and plural.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Circle => ("circle", "circles"),
            Square => ("square", "squares"),
            Triangle => ("triangle", "triangles"),
            Star => ("star", "stars"),
            Heart => ("heart", "hearts"),
            Diamond => ("diamond", "diamonds"),
            Ring => ("ring", "rings"),
            Cross => ("cross", "crosses"),
            House => ("house", "houses"),
            Tree => ("tree", "trees"),
            FirTree => ("fir tree", "fir trees"),
            Boat => ("boat", "boats"),
            Sun => ("sun", "suns"),
            Moon => ("moon", "moons"),
            Fish => ("fish", "fish"),
            Flower => ("flower", "flowers"),
            Car => ("car", "cars"),
            Cloud => ("cloud", "clouds"),
            Mountain => ("mountain", "mountains"),
            Balloon => ("balloon", "balloons"),
            Mushroom => ("mushroom", "mushrooms"),
            Apple => ("apple", "apples"),
            Butterfly => ("butterfly", "butterflies"),
            Bird => ("bird", "birds"),
        }
    }

    /// Where it may be placed in a landscape.
    pub(super) fn habitat(self) -> Habitat {
        match self {
            Circle | Square | Triangle | Star | Heart | Diamond | Ring | Cross => Habitat::Anywhere,
            Sun | Moon | Cloud | Balloon | Butterfly | Bird => Habitat::Sky,
            House | Tree | FirTree | Flower | Car | Mountain | Mushroom | Apple => Habitat::Ground,
            Boat | Fish => Habitat::Water,
        }
    }

    /// Its possible colors.
    pub(super) fn palette(self) -> &'static [NamedColor] {
        match self {
            House => &[RED, ORANGE, YELLOW, BLUE, PINK, WHITE, GRAY, TURQUOISE, BROWN],
            Tree => &[GREEN, GREEN, ORANGE, YELLOW, RED],
            FirTree => &[GREEN],
            Sun => &[YELLOW, ORANGE],
            Moon => &[YELLOW, WHITE],
            Cloud => &[WHITE, GRAY, PINK],
            Mountain => &[GRAY, BROWN, PURPLE, BLUE],
            Mushroom => &[RED, BROWN, ORANGE, PURPLE],
            Apple => &[RED, GREEN, YELLOW],
            Fish => &[ORANGE, RED, YELLOW, GREEN, PURPLE, PINK, GRAY],
            _ => super::color::ALL,
        }
    }

    /// Whether there may be several.
    pub(super) fn takes_group(self) -> bool {
        !matches!(self, Sun | Moon)
    }

    /// Whether it may be striped or spotted.
    pub(super) fn takes_pattern(self) -> bool {
        matches!(
            self,
            Circle | Square | Triangle | Heart | Diamond | Star | Fish | Balloon | Butterfly | Cross
        )
    }

    /// Whether it may be tilted.
    pub(super) fn may_lean(self) -> bool {
        matches!(self, Square | Triangle | Star | Heart | Diamond | Cross | Butterfly)
    }

    /// Its parts. The main one is painted with `main`, whose base color is `color`.
    pub(super) fn parts(self, main: Paint, color: Color, random: &mut Random) -> Vec<Part> {
        match self {
            Circle => vec![part(ellipse(0.0, 0.0, 0.95, 0.95), main)],
            Square => vec![part(rectangle(-0.82, -0.82, 0.82, 0.82), main)],
            Triangle => vec![part(vec![[0.0, -0.95], [0.95, 0.78], [-0.95, 0.78]], main)],
            Star => vec![part(star(if chance(random, 0.7) { 5 } else { 6 }), main)],
            Heart => vec![part(heart(), main)],
            Diamond => vec![part(vec![[0.0, -1.0], [0.72, 0.0], [0.0, 1.0], [-0.72, 0.0]], main)],
            Ring => ring(main, random),
            Cross => vec![part(cross(between(random, 0.24, 0.34)), main)],
            House => house(main, random),
            Tree => tree(main, random),
            FirTree => fir_tree(main, random),
            Boat => boat(main, random),
            Sun => sun(main, color, random),
            Moon => vec![part(crescent(between(random, 0.2, 0.5)), main)],
            Fish => fish(main, color),
            Flower => flower(main, color, random),
            Car => car(main),
            Cloud => cloud(main, random),
            Mountain => mountain(main, random),
            Balloon => balloon(main, color),
            Mushroom => mushroom(main, random),
            Apple => apple(main, color),
            Butterfly => butterfly(main, color),
            Bird => bird(main, color),
        }
    }
}

fn part(contour: Contour, paint: Paint) -> Part {
    Part { contours: vec![contour], paint }
}

fn solid(contour: Contour, color: Color) -> Part {
    part(contour, Paint::Solid(color))
}

fn star(points: usize) -> Contour {
    let step = TURN / (2 * points);
    (0..2 * points)
        .map(|corner| {
            let [cos, sin] = direction(corner * step + TURN * 3 / 4);
            let radius = if corner % 2 == 0 { 1.0 } else { 0.42 };
            [radius * cos, radius * sin]
        })
        .collect()
}

/// The curve x = 16 sin³t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t.
fn heart() -> Contour {
    (0..TURN)
        .step_by(3)
        .map(|step| {
            let [cos, sin] = direction(step);
            let multiple = |times: usize| direction(step * times)[0];
            let y = 13.0 * cos - 5.0 * multiple(2) - 2.0 * multiple(3) - multiple(4);
            [sin * sin * sin * 0.98, -(y + 2.5) / 16.5]
        })
        .collect()
}

fn cross(half: f64) -> Contour {
    let end = 0.95;
    vec![
        [-half, -end],
        [half, -end],
        [half, -half],
        [end, -half],
        [end, half],
        [half, half],
        [half, end],
        [-half, end],
        [-half, half],
        [-end, half],
        [-end, -half],
        [-half, -half],
    ]
}

fn ring(main: Paint, random: &mut Random) -> Vec<Part> {
    let hole = between(random, 0.45, 0.62);
    // The hole has the opposite orientation, so that its winding number is 0.
    let inner: Contour = ellipse(0.0, 0.0, hole, hole).into_iter().rev().collect();
    vec![Part { contours: vec![ellipse(0.0, 0.0, 0.97, 0.97), inner], paint: main }]
}

/// Two arcs from tip to tip; `thinness` is how far the inner one bulges.
fn crescent(thinness: f64) -> Contour {
    let arc = |bulge: f64| {
        (0..=TURN / 2).step_by(3).map(move |step| {
            let [cos, sin] = direction(step);
            [0.5 - bulge * sin, -0.95 * cos]
        })
    };
    arc(1.1).chain(arc(thinness).collect::<Vec<_>>().into_iter().rev()).collect()
}

fn house(main: Paint, random: &mut Random) -> Vec<Part> {
    let roof = pick(random, &[RED.color, BROWN.color, GRAY.color, BLACK.color]);
    let roof = mix(roof, lighter(roof, 0.3), random.uniform());
    let window = pick(random, &[[190.0, 222.0, 245.0], [252.0, 234.0, 140.0]]);
    let door = between(random, -0.5, 0.15);
    let mut parts = Vec::new();
    if chance(random, 0.5) {
        parts.push(solid(rectangle(0.38, -0.85, 0.62, -0.2), darker(roof, 0.35)));
    }
    parts.push(part(rectangle(-0.75, -0.15, 0.75, 0.95), main));
    parts.push(solid(vec![[-1.0, -0.1], [0.0, -0.95], [1.0, -0.1]], roof));
    parts.push(solid(rectangle(door, 0.35, door + 0.34, 0.95), darker(BROWN.color, 0.2)));
    for left in [door - 0.48, door + 0.52] {
        if left > -0.7 && left + 0.3 < 0.72 {
            parts.push(solid(rectangle(left, 0.12, left + 0.3, 0.42), window));
        }
    }
    parts
}

fn tree(main: Paint, random: &mut Random) -> Vec<Part> {
    let trunk = solid(
        vec![[-0.12, 0.1], [0.12, 0.1], [0.18, 0.97], [-0.18, 0.97]],
        darker(BROWN.color, between(random, 0.0, 0.3)),
    );
    let crown = if chance(random, 0.4) {
        vec![ellipse(0.0, -0.3, 0.68, 0.66)]
    } else {
        vec![
            ellipse(0.0, -0.52, 0.5, 0.44),
            ellipse(-0.42, -0.12, 0.44, 0.38),
            ellipse(0.42, -0.12, 0.44, 0.38),
            ellipse(0.0, 0.0, 0.5, 0.34),
        ]
    };
    vec![trunk, Part { contours: crown, paint: main }]
}

fn fir_tree(main: Paint, random: &mut Random) -> Vec<Part> {
    let trunk = solid(rectangle(-0.12, 0.5, 0.12, 0.97), darker(BROWN.color, 0.2));
    let snow = chance(random, 0.25);
    let mut parts = vec![trunk];
    for (top, bottom, half) in [(-0.1, 0.72, 0.78), (-0.55, 0.3, 0.62), (-0.97, -0.15, 0.45)] {
        parts.push(part(vec![[0.0, top], [half, bottom], [-half, bottom]], main));
        if snow {
            let end = top + (bottom - top) * 0.3;
            let tip = vec![[0.0, top], [half * 0.3, end], [-half * 0.3, end]];
            parts.push(solid(tip, WHITE.color));
        }
    }
    parts
}

fn boat(main: Paint, random: &mut Random) -> Vec<Part> {
    let sail = pick(random, &[WHITE.color, [250.0, 236.0, 200.0], [225.0, 232.0, 240.0]]);
    let hull = vec![[-0.97, 0.35], [0.97, 0.35], [0.62, 0.88], [-0.62, 0.88]];
    let mut parts = vec![
        solid(rectangle(-0.05, -0.95, 0.05, 0.4), darker(BROWN.color, 0.25)),
        solid(vec![[0.1, -0.88], [0.82, 0.2], [0.1, 0.2]], sail),
    ];
    if chance(random, 0.6) {
        parts.push(solid(vec![[-0.1, -0.7], [-0.1, 0.2], [-0.65, 0.2]], darker(sail, 0.08)));
    }
    parts.push(part(hull, main));
    parts
}

fn sun(main: Paint, color: Color, random: &mut Random) -> Vec<Part> {
    let rays = pick(random, &[8, 10, 12]);
    let step = TURN / rays;
    let ray = |index: usize| {
        let [tip, left, right] = [0, step / 3, TURN - step / 3].map(|turn| direction(index * step + turn));
        vec![tip, [left[0] * 0.58, left[1] * 0.58], [right[0] * 0.58, right[1] * 0.58]]
    };
    let rays = Part { contours: (0..rays).map(ray).collect(), paint: Paint::Solid(lighter(color, 0.12)) };
    vec![rays, part(ellipse(0.0, 0.0, 0.6, 0.6), main)]
}

fn fish(main: Paint, color: Color) -> Vec<Part> {
    let fin = Paint::Solid(darker(color, 0.22));
    vec![
        part(vec![[0.42, 0.0], [0.98, -0.5], [0.86, 0.0], [0.98, 0.5]], fin),
        part(vec![[-0.25, -0.4], [0.3, -0.72], [0.3, -0.3]], fin),
        part(ellipse(-0.15, 0.0, 0.78, 0.5), main),
        solid(ellipse(-0.58, -0.12, 0.13, 0.13), WHITE.color),
        solid(ellipse(-0.6, -0.12, 0.06, 0.06), BLACK.color),
    ]
}

fn flower(main: Paint, color: Color, random: &mut Random) -> Vec<Part> {
    let petals = pick(random, &[5, 6, 8]);
    let petal = |index: usize| {
        let [cos, sin] = direction(index * TURN / petals + TURN / 4);
        let size = if petals == 8 { 0.21 } else { 0.27 };
        ellipse(0.36 * cos, -0.38 + 0.36 * sin, size, size)
    };
    let middle = if color[0] > 220.0 && color[1] > 190.0 { darker(ORANGE.color, 0.2) } else { YELLOW.color };
    let green = darker(GREEN.color, between(random, 0.05, 0.3));
    vec![
        solid(rectangle(-0.06, -0.3, 0.06, 0.98), green),
        solid(vec![[0.0, 0.75], [0.25, 0.35], [0.55, 0.3], [0.35, 0.62]], green),
        Part { contours: (0..petals).map(petal).collect(), paint: main },
        solid(ellipse(0.0, -0.38, 0.2, 0.2), middle),
    ]
}

fn car(main: Paint) -> Vec<Part> {
    let glass = [196.0, 224.0, 242.0];
    let mut parts = vec![
        part(
            vec![
                [-0.97, 0.5],
                [-0.97, 0.1],
                [-0.62, 0.02],
                [-0.38, -0.45],
                [0.36, -0.45],
                [0.62, 0.0],
                [0.97, 0.06],
                [0.97, 0.5],
            ],
            main,
        ),
        solid(vec![[-0.5, 0.02], [-0.31, -0.34], [-0.05, -0.34], [-0.05, 0.02]], glass),
        solid(vec![[0.05, 0.02], [0.05, -0.34], [0.3, -0.34], [0.48, 0.02]], glass),
    ];
    for x in [-0.52, 0.52] {
        parts.push(solid(ellipse(x, 0.5, 0.25, 0.25), BLACK.color));
        parts.push(solid(ellipse(x, 0.5, 0.11, 0.11), GRAY.color));
    }
    parts
}

fn cloud(main: Paint, random: &mut Random) -> Vec<Part> {
    let lean = between(random, -0.15, 0.15);
    vec![Part {
        contours: vec![
            ellipse(-0.5, 0.12, 0.45, 0.32),
            ellipse(lean, -0.16, 0.46, 0.42),
            ellipse(0.48, 0.08, 0.46, 0.34),
            ellipse(0.0, 0.22, 0.7, 0.26),
        ],
        paint: main,
    }]
}

fn mountain(main: Paint, random: &mut Random) -> Vec<Part> {
    let peak = between(random, -0.3, 0.3);
    let foot: [Point; 2] = [[-1.0, 0.92], [1.0, 0.92]];
    let along = |end: Point, share: f64| [peak + (end[0] - peak) * share, -0.9 + (end[1] + 0.9) * share];
    let mut parts = vec![part(vec![[peak, -0.9], foot[1], foot[0]], main)];
    if chance(random, 0.7) {
        let (left, right) = (along(foot[0], 0.34), along(foot[1], 0.34));
        let dip = |share: f64, lift: f64| [left[0] + (right[0] - left[0]) * share, left[1] - lift];
        parts.push(solid(
            vec![[peak, -0.9], right, dip(0.68, 0.18), dip(0.5, -0.02), dip(0.3, 0.18), left],
            WHITE.color,
        ));
    }
    parts
}

fn balloon(main: Paint, color: Color) -> Vec<Part> {
    vec![
        solid(vec![[-0.025, 0.4], [0.025, 0.4], [0.1, 0.98], [0.04, 0.98]], darker(GRAY.color, 0.3)),
        solid(vec![[0.0, 0.36], [0.14, 0.55], [-0.14, 0.55]], darker(color, 0.25)),
        part(ellipse(0.0, -0.26, 0.6, 0.7), main),
        solid(ellipse(-0.22, -0.52, 0.1, 0.16), lighter(color, 0.55)),
    ]
}

fn mushroom(main: Paint, random: &mut Random) -> Vec<Part> {
    let cap = (0..=TURN / 2).step_by(3).map(|step| {
        let [cos, sin] = direction(step + TURN / 2);
        [0.95 * cos, 0.15 + 1.02 * sin]
    });
    let mut parts = vec![
        solid(
            vec![[-0.25, 0.1], [0.25, 0.1], [0.34, 0.78], [0.22, 0.95], [-0.22, 0.95], [-0.34, 0.78]],
            [244.0, 232.0, 205.0],
        ),
        part(cap.collect(), main),
    ];
    if chance(random, 0.7) {
        for (x, y, radius) in [(-0.45, -0.2, 0.14), (0.08, -0.5, 0.15), (0.5, -0.15, 0.13)] {
            parts.push(solid(ellipse(x, y, radius, radius), WHITE.color));
        }
    }
    parts
}

fn apple(main: Paint, color: Color) -> Vec<Part> {
    vec![
        Part { contours: vec![ellipse(-0.3, 0.2, 0.56, 0.7), ellipse(0.3, 0.2, 0.56, 0.7)], paint: main },
        solid(vec![[-0.05, -0.3], [0.02, -0.92], [0.12, -0.9], [0.05, -0.3]], darker(BROWN.color, 0.3)),
        solid(vec![[0.1, -0.6], [0.35, -0.9], [0.7, -0.85], [0.45, -0.55]], darker(GREEN.color, 0.1)),
        solid(ellipse(-0.48, -0.08, 0.11, 0.17), lighter(color, 0.5)),
    ]
}

fn butterfly(main: Paint, color: Color) -> Vec<Part> {
    let lower = Paint::Solid(darker(color, 0.2));
    vec![
        Part { contours: vec![ellipse(-0.42, 0.4, 0.38, 0.4), ellipse(0.42, 0.4, 0.38, 0.4)], paint: lower },
        Part { contours: vec![ellipse(-0.5, -0.35, 0.48, 0.5), ellipse(0.5, -0.35, 0.48, 0.5)], paint: main },
        solid(ellipse(0.0, 0.05, 0.11, 0.75), darker(BROWN.color, 0.5)),
    ]
}

fn bird(main: Paint, color: Color) -> Vec<Part> {
    let beak = if squared_distance(color, ORANGE.color) < 6000.0 { BROWN.color } else { ORANGE.color };
    vec![
        solid(vec![[-0.7, -0.32], [-0.99, -0.2], [-0.68, -0.12]], beak),
        part(vec![[0.35, 0.0], [0.97, -0.35], [0.9, 0.2]], Paint::Solid(darker(color, 0.25))),
        Part { contours: vec![ellipse(0.05, 0.15, 0.6, 0.42), ellipse(-0.5, -0.25, 0.3, 0.3)], paint: main },
        part(vec![[-0.1, 0.0], [0.5, -0.1], [0.35, 0.38], [0.05, 0.3]], Paint::Solid(darker(color, 0.3))),
        solid(ellipse(-0.56, -0.3, 0.09, 0.09), WHITE.color),
        solid(ellipse(-0.58, -0.3, 0.05, 0.05), BLACK.color),
    ]
}
