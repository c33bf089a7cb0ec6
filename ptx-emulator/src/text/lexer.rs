//! Tokens. A word keeps its dotted tail, so an opcode with all its modifiers is one token.

use super::{SyntaxError, line_and_column};

/// What a token is; its text is `source[at..end]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// `add.s32`, `%tid.x`, `$L__BB0_1`, `foo`.
    Word,
    /// `.reg`, `.b32`.
    Directive,
    /// `12`, `0x1F`, `0f3F800000`, `1.5`.
    Number,
    /// `"…"`, quotes included.
    Text,
    /// One character.
    Punctuation(u8),
    /// After the last token.
    End,
}

/// A token and its extent in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) at: u32,
    pub(crate) end: u32,
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%')
}

fn continues_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')
}

/// Splits `source` into tokens; the last one is `End`.
pub(crate) fn tokens(file: &str, source: &str) -> Result<Vec<Token>, SyntaxError> {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(source.len() / 4);
    let mut at = 0;
    let closed = |at| unexpected(file, source, at, "a comment that ends with `*/`");
    while let Some(start) = skip_blanks(bytes, at).map_err(closed)? {
        let byte = bytes[start];
        let (kind, end) = if starts_word(byte) {
            (TokenKind::Word, dotted(bytes, start + 1))
        } else if byte == b'.' && bytes.get(start + 1).is_some_and(|&next| continues_word(next)) {
            (TokenKind::Directive, dotted(bytes, start + 1))
        } else if byte.is_ascii_digit() {
            (TokenKind::Number, number(bytes, start))
        } else if byte == b'"' {
            let length = bytes[start + 1..].iter().position(|&byte| byte == b'"');
            let Some(length) = length else {
                return Err(unexpected(file, source, start, "a closing quote"));
            };
            (TokenKind::Text, start + length + 2)
        } else if byte.is_ascii_graphic() {
            (TokenKind::Punctuation(byte), start + 1)
        } else {
            return Err(unexpected(file, source, start, "PTX"));
        };
        out.push(Token { kind, at: start as u32, end: end as u32 });
        at = end;
    }
    let end = source.len() as u32;
    out.push(Token { kind: TokenKind::End, at: end, end });
    Ok(out)
}

/// The end of a word and its glued tail: `.rn`, `::128B`.
fn dotted(bytes: &[u8], mut at: usize) -> usize {
    loop {
        while at < bytes.len() && continues_word(bytes[at]) {
            at += 1;
        }
        let next = |offset: usize| bytes.get(at + offset).copied().unwrap_or(b' ');
        if next(0) == b'.' && continues_word(next(1)) {
            at += 1;
        } else if next(0) == b':' && next(1) == b':' && continues_word(next(2)) {
            at += 2;
        } else {
            return at;
        }
    }
}

fn number(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    let prefixed = bytes[start] == b'0' && bytes.get(start + 1).is_some_and(u8::is_ascii_alphabetic);
    while at < bytes.len() {
        let exponent_sign =
            !prefixed && matches!(bytes[at], b'+' | b'-') && matches!(bytes[at - 1], b'e' | b'E');
        if bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.' || (at > start && exponent_sign) {
            at += 1;
        } else {
            break;
        }
    }
    at
}

/// The start of the next token, past white space and comments; an error is that of a comment without an end.
fn skip_blanks(bytes: &[u8], mut at: usize) -> Result<Option<usize>, usize> {
    while at < bytes.len() {
        if bytes[at].is_ascii_whitespace() {
            at += 1;
        } else if bytes[at..].starts_with(b"//") {
            at += bytes[at..].iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len() - at);
        } else if bytes[at..].starts_with(b"/*") {
            at += 4 + bytes[at + 2..].windows(2).position(|pair| pair == b"*/").ok_or(at)?;
        } else {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// The error for the text at `at`.
pub(crate) fn unexpected(file: &str, source: &str, at: usize, expected: &str) -> SyntaxError {
    let (line, column) = line_and_column(source, at as u32);
    let rest: String = source.get(at..).unwrap_or("").chars().take_while(|&c| c != '\n').take(40).collect();
    let found = if rest.is_empty() { "end of file".to_owned() } else { rest };
    SyntaxError { file: file.to_owned(), line, column, found, expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(source: &str) -> Vec<&str> {
        let tokens = tokens("t", source).unwrap();
        tokens.iter().map(|token| &source[token.at as usize..token.end as usize]).collect()
    }

    #[test]
    fn opcodes_keep_their_modifiers() {
        let text =
            "cp.async.cg.shared.global.L2::128B [%r1+-4], 0f3F800000; // x\n/* y */ $L_1: {a|b} .reg %r<3>;";
        let expected = [
            "cp.async.cg.shared.global.L2::128B",
            "[",
            "%r1",
            "+",
            "-",
            "4",
            "]",
            ",",
            "0f3F800000",
            ";",
            "$L_1",
            ":",
            "{",
            "a",
            "|",
            "b",
            "}",
            ".reg",
            "%r",
            "<",
            "3",
            ">",
            ";",
            "",
        ];
        assert_eq!(split(text), expected);
    }

    #[test]
    fn stray_bytes_have_a_place() {
        let error = tokens("k.ptx", "add\n  \u{e9}").unwrap_err();
        assert_eq!((error.line, error.column), (2, 3));
        assert!(tokens("k.ptx", "\"open").is_err());
    }
}
