//! Operands and literals.

use super::super::TokenKind;
use super::super::tree::*;
use super::{Parsed, Parser};

impl<'a> Parser<'a> {
    /// Nothing, `+n`, `-n` or `+-n`.
    pub(super) fn offset(&mut self) -> Parsed<i64> {
        let positive = self.accept(b'+');
        let negative = self.accept(b'-');
        if !positive && !negative {
            return Ok(0);
        }
        let value = self.unsigned("an offset")? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    pub(super) fn unsigned(&mut self, what: &str) -> Parsed<u64> {
        match (self.peek().kind, literal(self.peek_text())) {
            (TokenKind::Number, Some(Operand::Integer(value))) => {
                self.advance();
                Ok(value as u64)
            }
            _ => self.fail(what),
        }
    }

    /// A number up to `most`.
    pub(super) fn at_most(&mut self, most: u64, what: &str) -> Parsed<u32> {
        let at = self.next;
        let value = self.unsigned(what)?;
        match u32::try_from(value).ok().filter(|_| value <= most) {
            Some(value) => Ok(value),
            None => {
                self.next = at;
                self.fail(&format!("{what} of at most {most}"))
            }
        }
    }

    pub(super) fn operand(&mut self) -> Parsed<Operand<'a>> {
        self.nested(Self::any_operand)
    }

    fn any_operand(&mut self) -> Parsed<Operand<'a>> {
        let token = self.peek();
        let operand = match token.kind {
            TokenKind::Punctuation(b'{') => Operand::Vector(self.list(b'{', b'}')?),
            TokenKind::Punctuation(b'(') => Operand::List(self.list(b'(', b')')?),
            TokenKind::Punctuation(b'[') => return self.address(),
            TokenKind::Punctuation(b'!') => {
                self.advance();
                Operand::Not(self.word("a predicate")?)
            }
            TokenKind::Punctuation(b'-') => {
                self.advance();
                return self.negative();
            }
            TokenKind::Number => match literal(self.peek_text()) {
                Some(value) => {
                    self.advance();
                    value
                }
                None => return self.fail("a number"),
            },
            TokenKind::Word => {
                let name = self.word("an operand")?;
                match self.offset()? {
                    0 => Operand::Name(name),
                    offset => Operand::Offset(name, offset),
                }
            }
            _ => return self.fail("an operand"),
        };
        if self.accept(b'|') {
            let second = self.operand()?;
            return Ok(Operand::Pair(Box::new((operand, second))));
        }
        Ok(operand)
    }

    fn negative(&mut self) -> Parsed<Operand<'a>> {
        match literal(self.peek_text()) {
            Some(Operand::Integer(value)) => {
                self.advance();
                Ok(Operand::Integer(-value))
            }
            Some(Operand::Float64(bits)) => {
                self.advance();
                Ok(Operand::Float64((-f64::from_bits(bits)).to_bits()))
            }
            _ => self.fail("a number"),
        }
    }

    fn list(&mut self, open: u8, close: u8) -> Parsed<Vec<Operand<'a>>> {
        self.expect(open)?;
        let mut out = Vec::new();
        while !self.accept(close) {
            out.push(self.operand()?);
            if !self.accept(b',') && !self.is(close) {
                return self.fail(&format!("`,` or `{}`", close as char));
            }
        }
        Ok(out)
    }

    fn address(&mut self) -> Parsed<Operand<'a>> {
        self.expect(b'[')?;
        let (base, offset) = match self.peek().kind {
            TokenKind::Word => (self.word("an address")?, self.offset()?),
            TokenKind::Number => ("", self.unsigned("an address")? as i64),
            _ => return self.fail("an address"),
        };
        let operand = match self.accept(b',') {
            true => Operand::Tensor(base, offset, self.list(b'{', b'}')?),
            false => Operand::Address(base, offset),
        };
        self.expect(b']')?;
        Ok(operand)
    }
}

/// The value of a literal (PTX ISA, "Constants").
fn literal(text: &str) -> Option<Operand<'static>> {
    let lower = text.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0f") {
        return u32::from_str_radix(digits, 16).ok().map(Operand::Float32);
    }
    if let Some(digits) = lower.strip_prefix("0d") {
        return u64::from_str_radix(digits, 16).ok().map(Operand::Float64);
    }
    if !lower.starts_with("0x") && (lower.contains('.') || lower.contains('e')) {
        return lower.parse::<f64>().ok().map(|value| Operand::Float64(value.to_bits()));
    }
    let digits = lower.strip_suffix('u').unwrap_or(&lower);
    let value = if let Some(hex) = digits.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(binary) = digits.strip_prefix("0b") {
        u64::from_str_radix(binary, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(&digits[1..], 8)
    } else {
        digits.parse()
    };
    value.ok().map(|value| Operand::Integer(i128::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        assert_eq!(literal("0xFFFFFFFFFFFFFFFFU"), Some(Operand::Integer(u64::MAX.into())));
        assert_eq!(literal("017"), Some(Operand::Integer(15)));
        assert_eq!(literal("0b101"), Some(Operand::Integer(5)));
        assert_eq!(literal("1.5e1"), Some(Operand::Float64(15f64.to_bits())));
        assert_eq!(literal("12abc"), None);
    }
}
