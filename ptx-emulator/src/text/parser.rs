//! Recursive descent over the tokens.

use super::lexer::{tokens, unexpected};
use super::tree::*;
use super::{SyntaxError, Token, TokenKind};

/// Parses a file of PTX; `file` is its name in errors.
///
/// # Errors
/// The first place where the text leaves the grammar.
pub fn parse<'a>(file: &'a str, source: &'a str) -> Result<Module<'a>, SyntaxError> {
    let tokens = tokens(file, source)?;
    Parser { file, source, tokens, next: 0 }.module()
}

pub(super) struct Parser<'a> {
    file: &'a str,
    source: &'a str,
    tokens: Vec<Token>,
    next: usize,
}

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

    /// A directive followed by up to three numbers; missing ones are 1.
    fn extents(&mut self) -> Parsed<[u32; 3]> {
        self.advance();
        let mut out = [self.unsigned("a number")? as u32, 1, 1];
        for slot in &mut out[1..] {
            if !self.accept(b',') {
                break;
            }
            *slot = self.unsigned("a number")? as u32;
        }
        Ok(out)
    }

    fn parameters(&mut self) -> Parsed<Vec<Variable<'a>>> {
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

    fn variables(&mut self, external: bool) -> Parsed<Vec<Variable<'a>>> {
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
                "align" => align = Some(self.unsigned("an alignment")? as u32),
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
                elements *= if self.is(b']') { 0 } else { self.unsigned("a number of elements")? };
                self.expect(b']')?;
            }
            let mut initialiser = Vec::new();
            if self.accept(b'=') {
                self.initialiser(ty, &mut initialiser)?;
            }
            let elements = if elements == 0 { initialiser.len() as u64 } else { elements };
            out.push(Variable {
                space,
                name,
                align: align.unwrap_or(element_bytes as u32).max(1),
                bytes: element_bytes * elements,
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
                self.initialiser(ty, out)?;
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

    /// Nothing, `+n`, `-n` or `+-n`.
    fn offset(&mut self) -> Parsed<i64> {
        let positive = self.accept(b'+');
        let negative = self.accept(b'-');
        if !positive && !negative {
            return Ok(0);
        }
        let value = self.unsigned("an offset")? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn unsigned(&mut self, what: &str) -> Parsed<u64> {
        match (self.peek().kind, literal(self.peek_text())) {
            (TokenKind::Number, Some(Operand::Integer(value))) => {
                self.advance();
                Ok(value as u64)
            }
            _ => self.fail(what),
        }
    }

    fn body(&mut self) -> Parsed<Vec<Statement<'a>>> {
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

    fn registers(&mut self) -> Parsed<Vec<Register<'a>>> {
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
                count = Some(self.unsigned("a number of registers")? as u32);
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

    fn operand(&mut self) -> Parsed<Operand<'a>> {
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
        let start = self.peek().at as usize;
        self.expect(b'[')?;
        let operand = match self.peek().kind {
            TokenKind::Word => {
                let base = self.word("an address")?;
                Operand::Address(base, self.offset()?)
            }
            TokenKind::Number => Operand::Address("", self.unsigned("an address")? as i64),
            _ => return self.fail("an address"),
        };
        if self.accept(b']') {
            return Ok(operand);
        }
        // Tensor coordinates: kept as text, refused when decoded.
        while !self.is(b']') {
            if matches!(self.peek().kind, TokenKind::End | TokenKind::Punctuation(b';')) {
                return self.fail("`]`");
            }
            self.advance();
        }
        self.expect(b']')?;
        let end = self.tokens[self.next - 1].end as usize;
        Ok(Operand::Other(&self.source[start..end]))
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
        assert!(matches!(instructions[4].operands[1], Operand::Other("[%r2, {%r3}]")));
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

    #[test]
    fn literals() {
        assert_eq!(literal("0xFFFFFFFFFFFFFFFFU"), Some(Operand::Integer(u64::MAX.into())));
        assert_eq!(literal("017"), Some(Operand::Integer(15)));
        assert_eq!(literal("0b101"), Some(Operand::Integer(5)));
        assert_eq!(literal("1.5e1"), Some(Operand::Float64(15f64.to_bits())));
        assert_eq!(literal("12abc"), None);
    }
}
