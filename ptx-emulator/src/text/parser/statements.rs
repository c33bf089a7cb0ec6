//! Bodies of functions: labels, directives and instructions.

use super::super::tree::*;
use super::super::{Token, TokenKind};
use super::{Parsed, Parser};

impl<'a> Parser<'a> {
    pub(super) fn body(&mut self) -> Parsed<Vec<Statement<'a>>> {
        self.expect(b'{')?;
        let mut out = vec![Statement::Open];
        let mut depth = 1;
        while depth > 0 {
            let token = self.peek();
            match token.kind {
                TokenKind::Punctuation(b'{') => {
                    self.advance();
                    depth += 1;
                    out.push(Statement::Open);
                }
                TokenKind::Punctuation(b'}') => {
                    self.advance();
                    depth -= 1;
                    out.push(Statement::Close);
                }
                TokenKind::Directive => self.body_directive(&mut out)?,
                TokenKind::Word if self.tokens[self.next + 1].kind == TokenKind::Punctuation(b':') => {
                    let label = self.label(token)?;
                    out.push(label);
                }
                TokenKind::Word | TokenKind::Punctuation(b'@') => {
                    let instruction = self.instruction()?;
                    out.push(Statement::Instruction(instruction));
                }
                _ => return self.fail("an instruction, a declaration or `}`"),
            }
        }
        Ok(out)
    }

    fn body_directive(&mut self, out: &mut Vec<Statement<'a>>) -> Parsed<()> {
        match self.peek_text() {
            ".reg" => {
                let registers = self.registers()?;
                out.push(Statement::Registers(registers));
            }
            ".shared" | ".local" | ".param" | ".global" | ".const" => {
                let variables = self.variables(false)?;
                out.extend(variables.into_iter().map(Statement::Variable));
            }
            ".loc" | ".file" => self.skip_line(),
            ".pragma" => self.skip_pragma()?,
            _ => return self.fail("`.reg`, a variable, `.loc` or `.pragma`"),
        }
        Ok(())
    }

    fn label(&mut self, token: Token) -> Parsed<Statement<'a>> {
        let name = self.word("a label")?;
        self.expect(b':')?;
        match self.peek_text() {
            ".callprototype" => {
                self.advance();
                let returns = if self.is(b'(') { self.parameters()? } else { Vec::new() };
                self.word("`_`")?;
                let params = if self.is(b'(') { self.parameters()? } else { Vec::new() };
                self.accept_directive(".noreturn");
                self.expect(b';')?;
                Ok(Statement::Prototype(name, returns, params))
            }
            ".branchtargets" => {
                self.advance();
                let mut labels = vec![self.word("a label")?];
                while self.accept(b',') {
                    labels.push(self.word("a label")?);
                }
                self.expect(b';')?;
                Ok(Statement::Targets(name, labels))
            }
            _ => Ok(Statement::Label(name, Extent { at: token.at, end: token.end })),
        }
    }

    fn instruction(&mut self) -> Parsed<Instruction<'a>> {
        let at = self.peek().at;
        let mut guard = None;
        if self.accept(b'@') {
            let negated = self.accept(b'!');
            guard = Some(Guard { name: self.word("a predicate")?, negated });
        }
        let opcode = self.word("an instruction")?;
        let mut operands = Vec::new();
        if !self.is(b';') {
            operands.push(self.operand()?);
            while self.accept(b',') {
                operands.push(self.operand()?);
            }
        }
        let end = self.peek().at;
        self.expect(b';')?;
        Ok(Instruction { guard, opcode, operands, extent: Extent { at, end } })
    }
}
