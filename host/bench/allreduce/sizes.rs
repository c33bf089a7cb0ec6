//! Sizes as people write them: `8KiB`, `1KiB..64MiB`.

use std::str::FromStr;

/// Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(pub Vec<usize>);

/// What a size looks like.
const FORM: &str = "write sizes such as 8KiB,1MiB or a range such as 1KiB..64MiB, which doubles";

impl FromStr for Sizes {
    type Err = String;

    /// A list of sizes and of ranges, which double from their first size to their last.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut sizes = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => sizes.push(size(part)?),
                Some((first, last)) => {
                    let (first, last) = (size(first)?, size(last)?);
                    if first > last {
                        return Err(format!("'{part}' ends before it begins; {FORM}"));
                    }
                    let doubled = |bytes: &usize| bytes.checked_mul(2);
                    sizes.extend(
                        std::iter::successors(Some(first), doubled).take_while(|bytes| *bytes <= last),
                    );
                }
            }
        }
        Ok(Self(sizes))
    }
}

fn size(text: &str) -> Result<usize, String> {
    let wrong = || format!("'{text}' is not a size; {FORM}");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number.parse().ok().and_then(|number: usize| number.checked_mul(scale));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// A size as people read it: the largest unit that divides it.
pub fn readable(bytes: usize) -> String {
    match bytes {
        0 => "0 B".into(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        let read = |text: &str| text.parse::<Sizes>().unwrap().0;
        assert_eq!(read("8KiB"), [8192]);
        assert_eq!(read("100, 3 B,1MiB"), [100, 3, 1 << 20]);
        assert_eq!(read("1KiB..8KiB,3K"), [1024, 2048, 4096, 8192, 3072]);
        assert_eq!(read("3..20"), [3, 6, 12]);
        assert_eq!(read("1KiB..64MiB").len(), 17);
    }

    #[test]
    fn what_is_no_size_is_named() {
        for text in ["", "x", "1KB", "-1", "0", "1KiB..", "99999999999GiB", "1.5KiB"] {
            let error = text.parse::<Sizes>().unwrap_err();
            assert!(error.contains("such as 8KiB,1MiB"), "{text}: {error}");
        }
        assert!("2MiB..1KiB".parse::<Sizes>().unwrap_err().contains("ends before it begins"));
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([100, 1536, 8192, 3 << 20].map(readable), ["100 B", "1536 B", "8 KiB", "3 MiB"]);
    }
}
