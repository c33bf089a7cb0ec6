//! Recursive descent over the tokens.

mod declarations;
mod operands;
mod statements;

use super::lexer::{tokens, unexpected};
use super::tree::*;
use super::{SyntaxError, Token, TokenKind};

/// Parses a file of PTX; `file` is its name in errors.
///
/// # Errors
/// The first place where the text leaves the grammar.
pub fn parse<'a>(file: &'a str, source: &'a str) -> Result<Module<'a>, SyntaxError> {
    let tokens = tokens(file, source)?;
    Parser { file, source, tokens, next: 0, depth: 0 }.module()
}

pub(super) struct Parser<'a> {
    file: &'a str,
    source: &'a str,
    tokens: Vec<Token>,
    next: usize,
    /// Of operands and initialisers within each other.
    depth: u32,
}

/// How deep operands and initialisers may be nested.
const MAX_DEPTH: u32 = 32;
/// The largest variable, and the largest alignment.
const MAX_VARIABLE_BYTES: u64 = 1 << 30;
const MAX_ALIGNMENT: u64 = 1 << 16;
/// Registers of a function.
pub(crate) const MAX_REGISTERS: u32 = 1 << 18;

type Parsed<T> = Result<T, SyntaxError>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Token {
        self.tokens[self.next]
    }

    fn text(&self, token: Token) -> &'a str {
        &self.source[token.at as usize..token.end as usize]
    }

    fn peek_text(&self) -> &'a str {
        self.text(self.peek())
    }

    fn advance(&mut self) -> Token {
        let token = self.peek();
        if token.kind != TokenKind::End {
            self.next += 1;
        }
        token
    }

    fn fail<T>(&self, expected: &str) -> Parsed<T> {
        Err(unexpected(self.file, self.source, self.peek().at as usize, expected))
    }

    /// Parses something that may contain its like.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return self.fail("less nesting");
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn is(&self, punctuation: u8) -> bool {
        self.peek().kind == TokenKind::Punctuation(punctuation)
    }

    fn accept(&mut self, punctuation: u8) -> bool {
        let found = self.is(punctuation);
        if found {
            self.next += 1;
        }
        found
    }

    fn expect(&mut self, punctuation: u8) -> Parsed<()> {
        if self.accept(punctuation) { Ok(()) } else { self.fail(&format!("`{}`", punctuation as char)) }
    }

    fn accept_directive(&mut self, name: &str) -> bool {
        let found = self.peek().kind == TokenKind::Directive && self.peek_text() == name;
        if found {
            self.next += 1;
        }
        found
    }

    fn word(&mut self, what: &str) -> Parsed<&'a str> {
        if self.peek().kind != TokenKind::Word {
            return self.fail(what);
        }
        let token = self.advance();
        Ok(self.text(token))
    }

    fn module(mut self) -> Parsed<Module<'a>> {
        let mut module = Module::default();
        while self.peek().kind != TokenKind::End {
            match self.peek_text() {
                ".version" => module.version = self.version()?,
                ".target" => module.target = self.target()?,
                ".address_size" => {
                    self.advance();
                    if self.unsigned("an address size")? != 64 {
                        self.next -= 1;
                        return self.fail("64, the only supported address size");
                    }
                }
                ".file" | ".loc" => self.skip_line(),
                ".section" => self.skip_section()?,
                ".pragma" => self.skip_pragma()?,
                _ => self.top_level(&mut module)?,
            }
        }
        if module.version == (0, 0) {
            return self.fail("a `.version` directive in the file");
        }
        Ok(module)
    }

    fn version(&mut self) -> Parsed<(u32, u32)> {
        self.advance();
        let numbers = self.peek_text().split_once('.');
        let version = numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let Some(version) = version else { return self.fail("a version such as 8.0") };
        self.advance();
        Ok(version)
    }

    fn target(&mut self) -> Parsed<&'a str> {
        self.advance();
        let target = self.word("a target such as sm_90a")?;
        while self.accept(b',') {
            self.word("a target option")?;
        }
        Ok(target)
    }

    /// `.loc` and `.file` end with their line.
    fn skip_line(&mut self) {
        let start = self.peek().at as usize;
        let end = self.source[start..].find('\n').map_or(self.source.len(), |length| start + length) as u32;
        while self.peek().kind != TokenKind::End && self.peek().at < end {
            self.next += 1;
        }
    }

    fn skip_section(&mut self) -> Parsed<()> {
        while !self.is(b'{') {
            if self.peek().kind == TokenKind::End {
                return self.fail("`{` of a section");
            }
            self.advance();
        }
        while !self.accept(b'}') {
            if self.peek().kind == TokenKind::End {
                return self.fail("`}` of a section");
            }
            self.advance();
        }
        Ok(())
    }

    fn skip_pragma(&mut self) -> Parsed<()> {
        self.advance();
        while !self.accept(b';') {
            if !matches!(self.peek().kind, TokenKind::Text | TokenKind::Punctuation(b',')) {
                return self.fail("a quoted pragma");
            }
            self.advance();
        }
        Ok(())
    }

    fn top_level(&mut self, module: &mut Module<'a>) -> Parsed<()> {
        let mut external = false;
        loop {
            match self.peek_text() {
                ".visible" | ".weak" | ".common" => {}
                ".extern" => external = true,
                _ => break,
            }
            self.advance();
        }
        match self.peek_text() {
            ".entry" | ".func" => {
                let function = self.function()?;
                let list =
                    if function.body.is_empty() { &mut module.declared } else { &mut module.functions };
                list.push(function);
                Ok(())
            }
            ".global" | ".const" | ".shared" => {
                let variables = self.variables(external)?;
                module.variables.extend(variables);
                Ok(())
            }
            _ => self.fail("a variable, `.entry` or `.func`"),
        }
    }

    fn function(&mut self) -> Parsed<Function<'a>> {
        let token = self.advance();
        let entry = self.text(token) == ".entry";
        self.accept_directive(".noreturn");
        let returns = if !entry && self.is(b'(') { self.parameters()? } else { Vec::new() };
        let name_token = self.peek();
        let name = self.word("the name of a function")?;
        let params = if self.is(b'(') { self.parameters()? } else { Vec::new() };
        let mut function = Function {
            entry,
            name,
            params,
            returns,
            max_threads: None,
            required_threads: None,
            min_blocks: None,
            cluster: None,
            body: Vec::new(),
            extent: Extent { at: name_token.at, end: name_token.end },
        };
        loop {
            let at = self.peek();
            match self.peek_text() {
                ";" => {
                    self.advance();
                    return Ok(function);
                }
                "{" => {
                    function.body = self.body()?;
                    return Ok(function);
                }
                ".maxntid" => function.max_threads = Some(self.extents()?),
                ".reqntid" => function.required_threads = Some(self.extents()?),
                ".minnctapersm" => function.min_blocks = Some(self.extents()?[0]),
                ".maxnreg" | ".maxnctapersm" => {
                    self.extents()?;
                }
                ".reqnctapercluster" | ".maxclusterrank" | ".blocksareclusters" | ".explicitcluster" => {
                    function.cluster = Some(Extent { at: at.at, end: at.end });
                    self.advance();
                    while self.peek().kind == TokenKind::Number || self.is(b',') {
                        self.advance();
                    }
                }
                ".pragma" => self.skip_pragma()?,
                ".noreturn" | ".abi_preserve" => {
                    self.advance();
                }
                _ => return self.fail("a body, `;` or a launch bound"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = ".version 8.0\n.target sm_90a, texmode_independent\n.address_size 64\n";

    #[test]
    fn a_kernel_with_everything_around_it() {
        let source = format!(
            "{HEAD}
            .extern .func (.param .b32 func_retval0) vprintf (.param .b64 vprintf_param_0, .param .b64 p1);
            .global .align 4 .b8 text[3] = {{104, 0x69, 0}};
            .const .f32 half = 0f3F000000;
            .extern .shared .align 16 .b8 pool[];
            .visible .entry k(.param .u64 .ptr .align 1 k_param_0, .param .align 8 .b8 k_param_1[40])
            .maxntid 128, 1, 1
            {{
              .reg .b32 %r<4>; .reg .pred %p, q; .loc 1 2 3
              .param .b32 retval0;
            $L0: @!%p bra.uni $L0; // comment
              setp.lt.s32 %p|q, %r1, -5;
              ld.global.v2.b32 {{%r1, _}}, [%r2+-8];
              call.uni (retval0), vprintf, (a, b);
              proto: .callprototype (.param .b32 _) _ (.param .b64 _);
              {{ .reg .b16 t; }}
              cp.async.bulk.tensor.2d.x.y [%r1], [%r2, {{%r3}}], [%r1];
            }}
            .section .debug_str {{ .b8 1 }}"
        );
        let module = parse("k.ptx", &source).unwrap();
        assert_eq!((module.version, module.target), ((8, 0), "sm_90a"));
        assert_eq!(module.variables[0].initialiser[1], Initialiser::Bits(0x69));
        assert_eq!(module.variables[1].initialiser, [Initialiser::Bits(0x3F00_0000)]);
        assert_eq!((module.variables[2].bytes, module.variables[2].align), (0, 16));
        assert_eq!(module.declared[0].params.len(), 2);
        let kernel = &module.functions[0];
        assert_eq!((kernel.max_threads, kernel.params[1].bytes), (Some([128, 1, 1]), 40));
        let instructions: Vec<_> = kernel
            .body
            .iter()
            .filter_map(|line| if let Statement::Instruction(found) = line { Some(found) } else { None })
            .collect();
        assert_eq!(instructions[0].guard, Some(Guard { name: "%p", negated: true }));
        assert_eq!(instructions[1].operands[2], Operand::Integer(-5));
        assert_eq!(instructions[2].operands[1], Operand::Address("%r2", -8));
        assert!(matches!(instructions[3].operands[0], Operand::List(_)));
        assert_eq!(instructions[4].operands[1], Operand::Tensor("%r2", 0, vec![Operand::Name("%r3")]));
    }

    #[test]
    fn errors_name_the_place() {
        let cases = [
            (".target sm_80", "a `.version` directive in the file", 1),
            (".version 8.0\n.entry k { add.s32 %r1 %r2; }", "`;`", 2),
            (".version 8.0\n.entry k {\n .reg .b33 %r;", "the type of a register", 3),
            (".version 8.0\n.address_size 32", "64, the only supported address size", 2),
        ];
        for (source, expected, line) in cases {
            let error = parse("k.ptx", source).unwrap_err();
            assert_eq!((error.expected.as_str(), error.line), (expected, line), "{error}");
        }
    }
}
