//! Types of Parquet columns, and the conversion of their values to text: numbers as the shortest decimals that parse
//! back to the same value, times in ISO format, the way pandas prints them.

use std::fmt::{self, Write as _};

use parquet::{
    basic::{ConvertedType, LogicalType, TimeUnit, Type as PhysicalType},
    schema::types::ColumnDescriptor,
};

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;
/// The Julian day of 1970-01-01.
const JULIAN_EPOCH: i64 = 2_440_588;
const NANOSECONDS_A_DAY: i64 = 86_400_000_000_000;

/// Type of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueType {
    /// Text, declared as such.
    Text,
    /// Bytes that may or may not be text.
    Bytes,
    Boolean,
    Signed,
    Unsigned,
    Float,
    /// Only nulls.
    Null,
    /// Time since 1970, in units of this many nanoseconds.
    Timestamp {
        unit: i64,
        utc: bool,
    },
    /// Days since 1970.
    Date,
    /// Time since midnight, in units of this many nanoseconds.
    Time {
        unit: i64,
    },
    /// An unscaled integer with this many digits after the decimal point.
    Decimal {
        scale: u32,
    },
    Half,
    Uuid,
}

impl ValueType {
    /// The type of a column; `None` if its values are not converted to text.
    pub(crate) fn of(column: &ColumnDescriptor) -> Option<Self> {
        if column.path().parts().len() > 1 { None } else { Self::of_leaf(column) }
    }

    /// Like [`of`](Self::of), for a column that may be within a struct.
    pub(crate) fn of_leaf(column: &ColumnDescriptor) -> Option<Self> {
        if column.max_rep_level() > 0 {
            return None;
        }
        match column.logical_type_ref() {
            Some(logical) => Self::of_logical(column, logical),
            None => Self::of_converted(column),
        }
    }

    fn of_logical(column: &ColumnDescriptor, logical: &LogicalType) -> Option<Self> {
        use LogicalType as L;
        use PhysicalType as P;
        Some(match (logical, column.physical_type()) {
            (L::String | L::Enum | L::Json, P::BYTE_ARRAY) => Self::Text,
            (L::Integer(integer), P::INT32 | P::INT64) if integer.is_signed => Self::Signed,
            (L::Integer(_), P::INT32 | P::INT64) => Self::Unsigned,
            (L::Unknown, _) => Self::Null,
            (L::Timestamp(about), P::INT64) => {
                Self::Timestamp { unit: nanoseconds(about.unit), utc: about.is_adjusted_to_u_t_c }
            }
            (L::Date, P::INT32) => Self::Date,
            (L::Time(about), P::INT32 | P::INT64) => Self::Time { unit: nanoseconds(about.unit) },
            (L::Decimal(about), _) => Self::decimal(column, about.scale)?,
            (L::Float16, P::FIXED_LEN_BYTE_ARRAY) => Self::Half,
            (L::Uuid, P::FIXED_LEN_BYTE_ARRAY) => Self::Uuid,
            _ => return None,
        })
    }

    fn of_converted(column: &ColumnDescriptor) -> Option<Self> {
        use ConvertedType as C;
        use PhysicalType as P;
        Some(match (column.converted_type(), column.physical_type()) {
            (C::UTF8 | C::ENUM | C::JSON, P::BYTE_ARRAY) => Self::Text,
            (C::NONE, P::BYTE_ARRAY) => Self::Bytes,
            (C::NONE, P::BOOLEAN) => Self::Boolean,
            (C::NONE, P::FLOAT | P::DOUBLE) => Self::Float,
            (C::NONE, P::INT96) => Self::Timestamp { unit: 1, utc: false },
            (C::NONE | C::INT_8 | C::INT_16 | C::INT_32 | C::INT_64, P::INT32 | P::INT64) => Self::Signed,
            (C::UINT_8 | C::UINT_16 | C::UINT_32 | C::UINT_64, P::INT32 | P::INT64) => Self::Unsigned,
            (C::TIMESTAMP_MILLIS, P::INT64) => Self::Timestamp { unit: 1_000_000, utc: true },
            (C::TIMESTAMP_MICROS, P::INT64) => Self::Timestamp { unit: 1_000, utc: true },
            (C::DATE, P::INT32) => Self::Date,
            (C::TIME_MILLIS, P::INT32) => Self::Time { unit: 1_000_000 },
            (C::TIME_MICROS, P::INT64) => Self::Time { unit: 1_000 },
            (C::DECIMAL, _) => Self::decimal(column, column.type_scale())?,
            _ => return None,
        })
    }

    /// A decimal, unless it can have more digits than the computation supports.
    fn decimal(column: &ColumnDescriptor, scale: i32) -> Option<Self> {
        let fits = column.type_precision() <= 38;
        u32::try_from(scale).ok().filter(|scale| fits && *scale <= 38).map(|scale| Self::Decimal { scale })
    }

    /// Whether the values can be ratings.
    pub(crate) fn is_rating(self) -> bool {
        matches!(self, Self::Signed | Self::Float)
    }

    /// Whether the values can be ids.
    pub(crate) fn is_id(self) -> bool {
        matches!(self, Self::Text | Self::Bytes | Self::Boolean | Self::Signed | Self::Unsigned | Self::Float)
    }

    /// Formats an integer according to the type.
    pub(crate) fn write_integer(self, text: &mut String, value: i64) -> fmt::Result {
        match self {
            Self::Timestamp { unit, utc } => {
                let per_day = NANOSECONDS_A_DAY / unit;
                write_timestamp(text, value.div_euclid(per_day), value.rem_euclid(per_day) * unit, utc)
            }
            Self::Date => write_date(text, value),
            Self::Time { unit } => match value.checked_mul(unit) {
                Some(nanoseconds) => write_time(text, nanoseconds),
                None => write!(text, "{value}"),
            },
            Self::Decimal { scale } => write_decimal(text, i128::from(value), scale),
            _ => write!(text, "{value}"),
        }
    }

    /// Formats bytes of fixed length according to the type.
    pub(crate) fn write_bytes(self, text: &mut String, bytes: &[u8]) -> fmt::Result {
        match (self, bytes) {
            (Self::Half, &[low, high]) => write!(text, "{}", half::f16::from_le_bytes([low, high]).to_f32()),
            (Self::Uuid, bytes) => bytes.iter().enumerate().try_for_each(|(at, byte)| {
                let hyphen = if [4, 6, 8, 10].contains(&at) { "-" } else { "" };
                write!(text, "{hyphen}{byte:02x}")
            }),
            (Self::Decimal { scale }, bytes) => write_decimal(text, big_endian(bytes), scale),
            _ => Err(fmt::Error),
        }
    }

    /// Formats a 96-bit timestamp: a Julian day and nanoseconds.
    pub(crate) fn write_int96(text: &mut String, data: &[u32]) -> fmt::Result {
        let [low, high, day] = data else { return Err(fmt::Error) };
        let nanoseconds = (u64::from(*high) << 32 | u64::from(*low)).cast_signed();
        write_timestamp(text, i64::from(*day) - JULIAN_EPOCH, nanoseconds, false)
    }
}

fn nanoseconds(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::MILLIS => 1_000_000,
        TimeUnit::MICROS => 1_000,
        TimeUnit::NANOS => 1,
    }
}

/// Decodes a two's complement integer of at most 16 bytes.
fn big_endian(bytes: &[u8]) -> i128 {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    bytes.iter().fold(if negative { -1 } else { 0 }, |number: i128, byte| number << 8 | i128::from(*byte))
}

fn write_decimal(text: &mut String, unscaled: i128, scale: u32) -> fmt::Result {
    let sign = if unscaled < 0 { "-" } else { "" };
    let digits = unscaled.unsigned_abs();
    if scale == 0 {
        return write!(text, "{sign}{digits}");
    }
    let one = 10_u128.pow(scale);
    write!(text, "{sign}{}.{:0width$}", digits / one, digits % one, width = scale as usize)
}

/// Formats the date of a day since 1970 in the Gregorian calendar (Hinnant, "chrono-compatible low-level date
/// algorithms").
fn write_date(text: &mut String, day: i64) -> fmt::Result {
    let day = day + EPOCH;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    write!(text, "{year:04}-{month:02}-{of_month:02}")
}

fn write_time(text: &mut String, nanoseconds: i64) -> fmt::Result {
    let (seconds, fraction) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    write!(text, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
    match (fraction, fraction % 1000) {
        (0, _) => Ok(()),
        (_, 0) => write!(text, ".{:06}", fraction / 1000),
        _ => write!(text, ".{fraction:09}"),
    }
}

fn write_timestamp(text: &mut String, day: i64, nanoseconds: i64, utc: bool) -> fmt::Result {
    write_date(text, day)?;
    text.push(' ');
    write_time(text, nanoseconds)?;
    text.push_str(if utc { "+00:00" } else { "" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integer(kind: ValueType, value: i64) -> String {
        let mut text = String::new();
        kind.write_integer(&mut text, value).unwrap();
        text
    }

    /// Expected values are from `str(pandas.Timestamp(value, unit=...))`, `str(datetime.time)` and
    /// `str(decimal.Decimal)`.
    #[test]
    fn times_and_decimals_are_written_the_way_python_prints_them() {
        let of = |unit, utc| ValueType::Timestamp { unit, utc };
        for (kind, value, expected) in [
            (of(1_000, false), 1_577_836_800_000_000, "2020-01-01 00:00:00"),
            (of(1_000_000, true), 1_709_210_096_789, "2024-02-29 12:34:56.789000+00:00"),
            (of(1, false), 1_709_210_096_789_012_345, "2024-02-29 12:34:56.789012345"),
            (of(1, false), -1, "1969-12-31 23:59:59.999999999"),
            (of(1, false), i64::MIN + 145_224_193, "1677-09-21 00:12:43.290448385"),
            (of(1_000_000, false), -62_135_596_800_000, "0001-01-01 00:00:00"),
            (ValueType::Date, 19_782, "2024-02-29"),
            (ValueType::Date, -1, "1969-12-31"),
            (ValueType::Date, 11_016, "2000-02-29"),
            (ValueType::Time { unit: 1_000 }, 45_296_000_001, "12:34:56.000001"),
            (ValueType::Time { unit: 1_000_000 }, 0, "00:00:00"),
            (ValueType::Decimal { scale: 2 }, -5, "-0.05"),
            (ValueType::Decimal { scale: 0 }, 1234, "1234"),
            (ValueType::Decimal { scale: 3 }, 1_500, "1.500"),
        ] {
            assert_eq!(integer(kind, value), expected, "{kind:?} {value}");
        }
        let mut text = String::new();
        // Noon of 2020-01-01.
        let noon = 43_200_000_000_000_u64;
        ValueType::write_int96(&mut text, &[noon as u32, (noon >> 32) as u32, 2_458_850]).unwrap();
        assert_eq!(text, "2020-01-01 12:00:00");
        text.clear();
        ValueType::Decimal { scale: 1 }.write_bytes(&mut text, &[0xFF, 0x85]).unwrap();
        assert_eq!(text, "-12.3");
        text.clear();
        ValueType::Uuid.write_bytes(&mut text, &(0..16).collect::<Vec<u8>>()).unwrap();
        assert_eq!(text, "00010203-0405-0607-0809-0a0b0c0d0e0f");
        // Values of a damaged file do not overflow.
        for kind in [of(1, true), of(1_000, true), of(1_000_000, true), ValueType::Time { unit: 1_000_000 }] {
            for value in [i64::MIN, i64::MAX] {
                integer(kind, value);
            }
        }
    }
}
