//! Dates for templates that tell the model what day it is, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const SECONDS_PER_DAY: u64 = 86_400;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// From the first day of 1970, a Thursday.
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The present moment in `format`.
pub(super) fn now(format: &str) -> Result<String, Error> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format_utc(format, since_1970.as_secs())
}

/// `seconds` since 1970 in `format`, with the directives of C's `strftime` that name dates and times.
fn format_utc(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
    let (year, month, day) = date(days);
    let (month_name, weekday) = (MONTHS[month as usize], WEEKDAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match chars.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{:02}", month + 1),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('d') => format!("{:02}", day + 1),
            Some('e') => format!("{:2}", day + 1),
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".into(),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let what = format!("strftime_now: '%{directive}' is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of the month (both from 0) of the day `days` after 1 January 1970.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 0;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_the_calendar() {
        let full = |seconds| format_utc("%a %A %d %e %b %B %m %Y %y %H:%M:%S %%", seconds).unwrap();
        assert_eq!(full(0), "Thu Thursday 01  1 Jan January 01 1970 70 00:00:00 %");
        assert_eq!(full(951_782_400), "Tue Tuesday 29 29 Feb February 02 2000 00 00:00:00 %");
        assert_eq!(full(1_735_689_599), "Tue Tuesday 31 31 Dec December 12 2024 24 23:59:59 %");
        assert_eq!(full(1_735_689_600), "Wed Wednesday 01  1 Jan January 01 2025 25 00:00:00 %");
        assert_eq!(full(4_107_542_400), "Mon Monday 01  1 Mar March 03 2100 00 00:00:00 %");
    }

    #[test]
    fn unknown_directives_are_named() {
        assert!(format_utc("%Q", 0).unwrap_err().to_string().contains("'%Q'"));
        assert!(format_utc("%", 0).is_err());
    }
}
