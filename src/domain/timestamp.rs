//! Timestamps in WorkOS's format, with microsecond precision.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use time::{Date, Month, OffsetDateTime, Time, UtcOffset};

/// An instant in UTC with microsecond precision, in the years 1 to 9999.
///
/// It is displayed as `YYYY-MM-DDTHH:MM:SS.mmmZ`, the format of WorkOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// Parses every format that WorkOS has used: `T` or a space between date and time, up to nine fraction digits, and `Z`, a
    /// numeric offset or nothing (which means UTC). Returns `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader(text.trim().as_bytes());
        let year = reader.digits(4)?;
        reader.expect(b"-")?;
        let month = Month::try_from(u8::try_from(reader.digits(2)?).ok()?).ok()?;
        reader.expect(b"-")?;
        let day = u8::try_from(reader.digits(2)?).ok()?;
        let date = Date::from_calendar_date(i32::try_from(year).ok()?, month, day).ok()?;
        reader.expect(b"Tt ")?;
        let time = reader.time()?;
        let offset = reader.offset()?;
        if !reader.0.is_empty() {
            return None;
        }
        let instant = OffsetDateTime::new_in_offset(date, time, offset).checked_to_offset(UtcOffset::UTC)?;
        (1..=9999).contains(&instant.year()).then(|| Self::from(instant))
    }

    /// Returns the microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn unix_micros(self) -> i64 {
        i64::try_from(self.0.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX)
    }

    /// Returns the milliseconds since 1970-01-01T00:00:00Z, rounded down.
    #[must_use]
    pub fn unix_millis(self) -> i64 {
        self.unix_micros().div_euclid(1_000)
    }

    /// Returns the whole seconds since 1970-01-01T00:00:00Z, rounded down.
    #[must_use]
    pub fn unix_seconds(self) -> i64 {
        self.0.unix_timestamp()
    }

    /// Returns the instant `micros` microseconds after 1970-01-01T00:00:00Z, or 1970-01-01T00:00:00Z itself if `micros` is out of
    /// range.
    #[must_use]
    pub fn from_unix_micros(micros: i64) -> Self {
        let instant = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000);
        Self(instant.unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }

    /// Adds `seconds`, which can be negative. The result is limited to the representable years.
    #[must_use]
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(time::Duration::seconds(seconds)))
    }

    /// Adds `micros` microseconds, which can be negative. The result is limited to the representable years.
    #[must_use]
    pub fn plus_micros(self, micros: i64) -> Self {
        Self(self.0.saturating_add(time::Duration::microseconds(micros)))
    }

    /// Subtracts `duration`. The result is limited to the representable years.
    #[must_use]
    pub fn minus(self, duration: std::time::Duration) -> Self {
        let duration = time::Duration::try_from(duration).unwrap_or(time::Duration::MAX);
        Self::from(self.0.saturating_sub(duration))
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(instant: OffsetDateTime) -> Self {
        let utc = instant.checked_to_offset(UtcOffset::UTC).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let whole_micros = utc.nanosecond() / 1_000 * 1_000;
        Self(utc.replace_nanosecond(whole_micros).unwrap_or(utc))
    }
}

impl From<Timestamp> for OffsetDateTime {
    fn from(timestamp: Timestamp) -> Self {
        timestamp.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.0;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            at.millisecond()
        )
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("the text is not a timestamp"))
    }
}

/// The text that is not parsed yet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn expect(&mut self, any_of: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        any_of.contains(first).then(|| self.0 = rest).map(|()| *first)
    }

    fn digits(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let number = digits
            .iter()
            .try_fold(0_u32, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0')))?;
        self.0 = rest;
        Some(number)
    }

    fn time(&mut self) -> Option<Time> {
        let hour = u8::try_from(self.digits(2)?).ok()?;
        self.expect(b":")?;
        let minute = u8::try_from(self.digits(2)?).ok()?;
        self.expect(b":")?;
        let second = u8::try_from(self.digits(2)?).ok()?;
        let mut nanos = 0;
        if self.expect(b".,").is_some() {
            let mut scale = 100_000_000;
            let mut seen = 0;
            while let Some(digit) = self.digits(1) {
                nanos += digit * scale;
                scale /= 10;
                seen += 1;
            }
            if !(1..=9).contains(&seen) {
                return None;
            }
        }
        Time::from_hms_nano(hour, minute, second, nanos).ok()
    }

    fn offset(&mut self) -> Option<UtcOffset> {
        let Some(sign) = self.expect(b"Zz+-") else {
            return self.0.is_empty().then_some(UtcOffset::UTC);
        };
        if sign.eq_ignore_ascii_case(&b'z') {
            return Some(UtcOffset::UTC);
        }
        let hours = i8::try_from(self.digits(2)?).ok()?;
        let colon = self.expect(b":").is_some();
        let minutes = if colon || !self.0.is_empty() { i8::try_from(self.digits(2)?).ok()? } else { 0 };
        if minutes > 59 {
            return None;
        }
        if sign == b'-' {
            UtcOffset::from_hms(-hours, -minutes, 0).ok()
        } else {
            UtcOffset::from_hms(hours, minutes, 0).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    fn shown(text: &str) -> Option<String> {
        Timestamp::parse(text).map(|at| at.to_string())
    }

    #[test]
    fn every_format_of_workos_is_parsed() {
        for text in [
            "2026-09-01T08:15:30.412Z",
            "2026-09-01 08:15:30.412",
            "2026-09-01 08:15:30.412000Z",
            "2026-09-01T10:15:30.412+02:00",
            "2026-09-01T02:45:30.412-0530",
            "2026-09-01T10:15:30.412000000+02",
        ] {
            assert_eq!(shown(text).as_deref(), Some("2026-09-01T08:15:30.412Z"), "{text}");
        }
        assert_eq!(shown("2026-09-01 08:15:30").as_deref(), Some("2026-09-01T08:15:30.000Z"));
    }

    #[test]
    fn microseconds_are_compared_and_nanoseconds_are_truncated() {
        let early = Timestamp::parse("2020-05-06 04:21:48.649164").unwrap();
        let late = Timestamp::parse("2020-05-06 04:21:48.649165").unwrap();
        assert!(early < late);
        assert_eq!(Timestamp::parse("2020-05-06T04:21:48.649164999Z"), Some(early));
        assert_eq!(Timestamp::from_unix_micros(early.unix_micros()), early);
    }

    #[test]
    fn any_other_text_is_rejected_without_a_panic() {
        for text in [
            "",
            "now",
            "2026-09-01",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-09-01T24:00:00Z",
            "2026-09-01T08:15:30.Z",
            "2026-09-01T08:15:30.1234567890Z",
            "2026-09-01T08:15:30+99:00",
            "2026-09-01T08:15:30Zjunk",
            "+2026-09-01T08:15:30Z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59-23:59",
            "２０２６-09-01T08:15:30Z",
            "1788250530456",
        ] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}
