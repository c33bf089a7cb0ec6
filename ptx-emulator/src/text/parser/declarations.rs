//! Registers, variables, parameters and their initialisers.

use super::super::TokenKind;
use super::super::tree::*;
use super::{MAX_ALIGNMENT, MAX_REGISTERS, MAX_VARIABLE_BYTES, Parsed, Parser};

impl<'a> Parser<'a> {
    /// A directive followed by up to three numbers; missing ones are 1.
    pub(super) fn extents(&mut self) -> Parsed<[u32; 3]> {
        self.advance();
        let mut out = [self.at_most(u32::MAX.into(), "a number")?, 1, 1];
        for slot in &mut out[1..] {
            if !self.accept(b',') {
                break;
            }
            *slot = self.at_most(u32::MAX.into(), "a number")?;
        }
        Ok(out)
    }

    pub(super) fn parameters(&mut self) -> Parsed<Vec<Variable<'a>>> {
        self.expect(b'(')?;
        let mut out = Vec::new();
        while !self.accept(b')') {
            if self.accept_directive(".reg") {
                return self.fail("a `.param` parameter (`.reg` parameters are not supported)");
            }
            if self.peek_text() != ".param" {
                return self.fail("`.param` or `)`");
            }
            out.extend(self.declaration(false)?);
            if !self.accept(b',') && !self.is(b')') {
                return self.fail("`,` or `)`");
            }
        }
        Ok(out)
    }

    pub(super) fn variables(&mut self, external: bool) -> Parsed<Vec<Variable<'a>>> {
        let out = self.declaration(external)?;
        self.expect(b';')?;
        Ok(out)
    }

    /// `.space [.align n] [.v2] .type [.ptr …] name[n] = …, name…`; parameters have one name each.
    fn declaration(&mut self, external: bool) -> Parsed<Vec<Variable<'a>>> {
        let token = self.advance();
        let space = match self.text(token) {
            ".global" => Space::Global,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            ".const" => Space::Const,
            _ => Space::Param,
        };
        let (mut align, mut lanes, mut ty) = (None, 1, None);
        while self.peek().kind == TokenKind::Directive {
            let at = self.advance();
            match &self.text(at)[1..] {
                "align" => align = Some(self.alignment()?),
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                "ptr" | "global" | "shared" | "local" | "const" | "attribute" => {}
                name => match ScalarType::parse(name) {
                    Some(found) => ty = Some(found),
                    None => {
                        self.next -= 1;
                        return self.fail("a type, `.align` or `.v2`");
                    }
                },
            }
            if self.text(at) == ".attribute" {
                self.parenthesised()?;
            }
        }
        let Some(ty) = ty else { return self.fail("a type") };
        let mut out = Vec::new();
        loop {
            let at = self.peek();
            let name = self.word("a name")?;
            let element_bytes = u64::from(ty.bytes() * lanes);
            let mut elements = 1;
            while self.accept(b'[') {
                let more = if self.is(b']') { 0 } else { self.unsigned("a number of elements")? };
                elements = u64::saturating_mul(elements, more);
                self.expect(b']')?;
            }
            let mut initialiser = Vec::new();
            if matches!(space, Space::Global | Space::Const) && self.accept(b'=') {
                self.initialiser(ty, &mut initialiser)?;
            }
            let elements = if elements == 0 { initialiser.len() as u64 } else { elements };
            let bytes = element_bytes.saturating_mul(elements);
            if bytes > MAX_VARIABLE_BYTES {
                return self.fail(&format!("a variable of at most {MAX_VARIABLE_BYTES} bytes"));
            }
            out.push(Variable {
                space,
                name,
                align: align.unwrap_or(element_bytes as u32).max(1),
                bytes,
                ty,
                initialiser,
                external,
                extent: Extent { at: at.at, end: at.end },
            });
            if space == Space::Param || !self.accept(b',') {
                return Ok(out);
            }
        }
    }

    fn alignment(&mut self) -> Parsed<u32> {
        let at = self.next;
        let align = self.at_most(MAX_ALIGNMENT, "an alignment")?;
        if align.is_power_of_two() {
            return Ok(align);
        }
        self.next = at;
        self.fail("a power of two")
    }

    fn parenthesised(&mut self) -> Parsed<()> {
        self.expect(b'(')?;
        let mut depth = 1;
        while depth > 0 {
            match self.advance().kind {
                TokenKind::Punctuation(b'(') => depth += 1,
                TokenKind::Punctuation(b')') => depth -= 1,
                TokenKind::End => return self.fail("`)`"),
                _ => {}
            }
        }
        Ok(())
    }

    fn initialiser(&mut self, ty: ScalarType, out: &mut Vec<Initialiser<'a>>) -> Parsed<()> {
        if self.accept(b'{') {
            while !self.accept(b'}') {
                self.nested(|parser| parser.initialiser(ty, out))?;
                if !self.accept(b',') && !self.is(b'}') {
                    return self.fail("`,` or `}`");
                }
            }
            return Ok(());
        }
        if self.peek().kind == TokenKind::Word {
            let generic = self.peek_text() == "generic";
            if generic {
                self.advance();
                self.expect(b'(')?;
            }
            let symbol = self.word("a symbol")?;
            if generic {
                self.expect(b')')?;
            }
            let offset = self.offset()?;
            out.push(Initialiser::Address { symbol, offset });
            return Ok(());
        }
        let bits = match self.operand()? {
            Operand::Integer(value) => value as u64,
            Operand::Float32(bits) if ty.bytes() == 4 => u64::from(bits),
            Operand::Float64(bits) if ty == ScalarType::F32 => {
                u64::from((f64::from_bits(bits) as f32).to_bits())
            }
            Operand::Float64(bits) if ty.bytes() == 8 => bits,
            _ => return self.fail("a constant of the variable's type"),
        };
        out.push(Initialiser::Bits(bits));
        Ok(())
    }

    pub(super) fn registers(&mut self) -> Parsed<Vec<Register<'a>>> {
        self.advance();
        let (mut lanes, mut ty) = (1, None);
        while self.peek().kind == TokenKind::Directive {
            match &self.peek_text()[1..] {
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                name => match ScalarType::parse(name) {
                    Some(found) => ty = Some(found),
                    None => return self.fail("the type of a register"),
                },
            }
            self.advance();
        }
        let Some(ty) = ty else { return self.fail("the type of a register") };
        let mut out = Vec::new();
        loop {
            let name = self.word("the name of a register")?;
            let mut count = None;
            if self.accept(b'<') {
                count = Some(self.at_most(MAX_REGISTERS.into(), "a number of registers")?);
                self.expect(b'>')?;
            }
            out.push(Register { name, count, ty, lanes });
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')?;
        Ok(out)
    }
}
