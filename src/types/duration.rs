//! Durations as people type them, and wall-clock times in whole seconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A duration in the form `90s`, `10m`, `8h`, `7d`, `250ms`, or several of these in a row
/// (`1h30m`). Never 0 and never longer than ten years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HumanDuration(pub Duration);

/// Ten years: longer is a typing mistake, and it keeps sums of times far from overflow.
const MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(40).flat_map(char::escape_default).collect();
        let error = || {
            format!("`{shown}` is not a duration: write it as 90s, 10m, 8h or 7d (at most 3650d)")
        };
        let mut total = Duration::ZERO;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let (number, tail) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| error())?;
            let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let millis = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(error()),
            };
            let part = number.checked_mul(millis).ok_or_else(error)?;
            total = total.checked_add(Duration::from_millis(part)).ok_or_else(error)?;
            rest = tail;
        }
        if total.is_zero() || total > MAX {
            return Err(error());
        }
        Ok(Self(total))
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HumanDuration> for String {
    fn from(duration: HumanDuration) -> Self {
        duration.to_string()
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
        let mut rest = millis;
        for (size, unit) in units {
            if rest >= size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        if millis == 0 { f.write_str("0s") } else { Ok(()) }
    }
}

/// A wall-clock time in whole seconds since 1970 (UTC). In JSON an RFC 3339 text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time `duration` later, in whole seconds, rounded up.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let round_up = u64::from(duration.subsec_nanos() > 0);
        Self(self.0.saturating_add(duration.as_secs()).saturating_add(round_up))
    }

    /// The time of an HTTP `Date` header (RFC 9110 section 5.6.7); none where it is none.
    #[must_use]
    pub fn of_http_date(text: &str) -> Option<Self> {
        let time = jiff::fmt::rfc2822::parse(text).ok()?;
        u64::try_from(time.timestamp().as_second()).ok().map(Self)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, UTC, whole seconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_second(seconds) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "@{}", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time: jiff::Timestamp = text
            .parse()
            .map_err(|_| "a time is written as RFC 3339, such as 2026-11-23T12:00:00Z")?;
        u64::try_from(time.as_second())
            .map(Self)
            .map_err(|_| "a time before 1970 makes no sense here".to_owned())
    }
}

impl TryFrom<String> for Timestamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for text in ["90s", "10m", "8h", "7d", "1h30m", "250ms"] {
            let parsed: HumanDuration = text.parse().unwrap();
            assert_eq!(parsed.to_string().parse::<HumanDuration>().unwrap(), parsed, "{text}");
        }
        assert_eq!("1h30m".parse::<HumanDuration>().unwrap().0, Duration::from_secs(5400));
        for bad in ["", "0s", "8", "h", "-1s", "1y", "99999999999999999999s", "9999999d", "1h 2m"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn http_dates_are_read_and_other_texts_are_not() {
        let time = Timestamp::of_http_date("Fri, 27 Nov 2026 00:24:11 GMT");
        assert_eq!(time.unwrap().to_string(), "2026-11-27T00:24:11Z");
        assert_eq!(Timestamp::of_http_date("now"), None);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!("1970-01-01T00:00:09Z".parse::<Timestamp>().unwrap(), Timestamp(9));
    }
}
