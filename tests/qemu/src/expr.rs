//! The scenario language's arithmetic: integers, variables, `+ - *`, parentheses.
//!
//! `${...}` in a scenario's text is replaced by the value of the expression inside. A number is
//! decimal or `0x`; `K`, `M`, `G` and `T` after it multiply by powers of 1024. A variable is a name as
//! in `page` or `bar.pa`; what it holds was captured from a line of a console or picked by the
//! scenario. A lone variable is replaced by its text, so that it need not be a number; anything
//! else is a number and printed as one, with `0x` from 64 Ki up, where addresses begin.
//!
//! Values are computed in 128 bits with every step checked, so no scenario can overflow silently.

use crate::line::parse_number;
use std::collections::BTreeMap;

/// Values by name. What a variable holds is text; where a number is wanted it is parsed.
pub type Variables = BTreeMap<String, String>;

/// Replaces every `${expression}` in `text`.
///
/// # Errors
/// Says what is wrong with an expression: its syntax, an unknown variable, one that holds no
/// number, overflow.
pub fn substitute(text: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (inner, tail) = after
            .split_once('}')
            .ok_or_else(|| format!("`${{` without `}}` in `{text}`"))?;
        out.push_str(before);
        match variables.get(inner.trim()) {
            Some(value) => out.push_str(value),
            None => out.push_str(&number_text(evaluate(inner, variables)?)),
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn number_text(value: i128) -> String {
    if value >= 0x1_0000 {
        format!("{value:#x}")
    } else {
        value.to_string()
    }
}

/// Computes an expression.
///
/// # Errors
/// As for [`substitute`].
pub fn evaluate(text: &str, variables: &Variables) -> Result<i128, String> {
    let mut parser = Parser {
        text,
        rest: text,
        variables,
    };
    let value = parser.sum(0)?;
    match parser.rest.trim_start() {
        "" => Ok(value),
        rest => Err(format!("`{text}`: `{rest}` is not expected here")),
    }
}

/// Decides a comparison such as `lost == 1` or `after - before >= 2`. Both sides are expressions.
/// Returns whether it holds, and both values for the reader of a failure.
///
/// # Errors
/// As for [`substitute`], and where there is no relation in it.
pub fn compare(text: &str, variables: &Variables) -> Result<(bool, i128, i128), String> {
    type Relation = fn(&i128, &i128) -> bool;
    const RELATIONS: [(&str, Relation); 6] = [
        ("==", i128::eq),
        ("!=", i128::ne),
        ("<=", i128::le),
        (">=", i128::ge),
        ("<", i128::lt),
        (">", i128::gt),
    ];
    for (sign, relation) in RELATIONS {
        if let Some((left, right)) = text.split_once(sign) {
            let (left, right) = (evaluate(left, variables)?, evaluate(right, variables)?);
            return Ok((relation(&left, &right), left, right));
        }
    }
    Err(format!(
        "`{text}` compares nothing: one of == != < <= > >= is wanted"
    ))
}

/// Reads a size such as `2G`, `64M` or `0x1000`.
///
/// # Errors
/// Where it is no such thing or more than 64 bits hold.
pub fn size(text: &str) -> Result<u64, String> {
    let value = evaluate(text, &Variables::new())?;
    u64::try_from(value).map_err(|_| format!("`{text}` does not fit 64 bits"))
}

/// The variables that the `${...}` of a text, or the whole of an expression, make use of.
pub fn names(expression: &str) -> Vec<&str> {
    expression
        .split(|c: char| !is_name(c))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
        .collect()
}

/// The insides of the `${...}` in a text.
pub fn holes(text: &str) -> impl Iterator<Item = &str> {
    text.split("${")
        .skip(1)
        .filter_map(|part| part.split_once('}').map(|(inner, _)| inner))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// Nesting allowed to parentheses, so that a hostile file cannot exhaust the stack.
const MAX_DEPTH: u32 = 32;

/// Recursive descent over `rest`, which only ever shrinks.
struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    variables: &'a Variables,
}

impl<'a> Parser<'a> {
    fn sum(&mut self, depth: u32) -> Result<i128, String> {
        let mut value = self.product(depth)?;
        loop {
            if self.take("+") {
                let right = self.product(depth)?;
                value = self.checked(value.checked_add(right))?;
            } else if self.take("-") {
                let right = self.product(depth)?;
                value = self.checked(value.checked_sub(right))?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self, depth: u32) -> Result<i128, String> {
        let mut value = self.atom(depth)?;
        while self.take("*") {
            let right = self.atom(depth)?;
            value = self.checked(value.checked_mul(right))?;
        }
        Ok(value)
    }

    fn atom(&mut self, depth: u32) -> Result<i128, String> {
        if depth > MAX_DEPTH {
            return Err(format!("`{}` is nested too deep", self.text));
        }
        if self.take("(") {
            let value = self.sum(depth + 1)?;
            return if self.take(")") {
                Ok(value)
            } else {
                Err(format!("`{}`: `)` is missing", self.text))
            };
        }
        let word = self.word();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return self.literal(word);
        }
        self.variable(word)
    }

    fn literal(&self, word: &str) -> Result<i128, String> {
        const UNITS: [(char, i128); 4] = [
            ('K', 1 << 10),
            ('M', 1 << 20),
            ('G', 1 << 30),
            ('T', 1 << 40),
        ];
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| word.strip_suffix(*suffix).map(|digits| (digits, *unit)))
            .unwrap_or((word, 1));
        let value = parse_number(digits)
            .ok_or_else(|| format!("`{}`: `{word}` is no number", self.text))?;
        self.checked(i128::from(value).checked_mul(unit))
    }

    fn variable(&self, name: &str) -> Result<i128, String> {
        if name.is_empty() {
            return Err(format!("`{}`: a number or a name is missing", self.text));
        }
        let value = self
            .variables
            .get(name)
            .ok_or_else(|| format!("`{}`: nothing has given `{name}` a value by now", self.text))?;
        parse_number(value).map(i128::from).ok_or_else(|| {
            format!(
                "`{}`: `{name}` holds `{value}`, which is no number",
                self.text
            )
        })
    }

    fn checked(&self, value: Option<i128>) -> Result<i128, String> {
        value.ok_or_else(|| format!("`{}` overflows", self.text))
    }

    fn take(&mut self, sign: &str) -> bool {
        let rest = self.rest.trim_start();
        match rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest.trim_start();
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.rest = rest;
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables() -> Variables {
        [
            ("bar.pa", "0x8000000000"),
            ("page", "4096"),
            ("block", "1g"),
            ("lost", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    #[test]
    fn operators_bind_as_in_arithmetic() {
        let value = |text| evaluate(text, &variables()).expect("a good expression");
        assert_eq!(value("2 + 3 * 4"), 14);
        assert_eq!(value("(2 + 3) * 4"), 20);
        assert_eq!(value("10 - 3 - 2"), 5);
        assert_eq!(value("2G - 1"), 0x7fff_ffff);
        assert_eq!(value("0x10K"), 0x4000);
        assert_eq!(value("bar.pa + page"), 0x80_0000_1000);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| evaluate(text, &variables()).expect_err("a bad expression");
        assert!(error("lots + 1").contains("`lots`"));
        assert!(error("block + 1").contains("no number"));
        assert!(error("1 +").contains("missing"));
        assert!(error("(1").contains("`)`"));
        assert!(error("1 2").contains("`2`"));
        assert!(error("5Q").contains("no number"));
        assert!(error("0xffffffffffffffff * 0xffffffffffffffff * 2").contains("overflows"));
        assert!(error(&"(".repeat(100)).contains("deep"));
    }

    #[test]
    fn holes_in_a_text_are_filled() {
        let text = |text| substitute(text, &variables());
        assert_eq!(
            text("poison ${bar.pa + page} 2").as_deref(),
            Ok("poison 0x8000001000 2")
        );
        assert_eq!(
            text("block=${block} n=${lost + 1}").as_deref(),
            Ok("block=1g n=2")
        );
        assert!(text("open ${page").is_err());
        assert!(text("${nothing}").is_err());
    }

    #[test]
    fn comparisons_report_both_sides() {
        let compare = |text| compare(text, &variables());
        assert_eq!(compare("lost == 1"), Ok((true, 1, 1)));
        assert_eq!(compare("lost + 1 <= 1"), Ok((false, 2, 1)));
        assert_eq!(compare("page > lost"), Ok((true, 4096, 1)));
        assert_eq!(compare("page != 4K"), Ok((false, 4096, 4096)));
        assert!(compare("lost").is_err());
        assert!(compare("lost = 1").is_err());
    }

    #[test]
    fn names_and_holes_are_found_without_evaluating() {
        assert_eq!(names("bar.pa + page * 0x10 - 4K"), ["bar.pa", "page"]);
        assert_eq!(
            holes("a ${b + 1} c ${d}").collect::<Vec<_>>(),
            ["b + 1", "d"]
        );
    }

    #[test]
    fn a_size_that_is_negative_or_too_large_is_refused() {
        assert_eq!(size("2G"), Ok(2 << 30));
        assert!(size("1 - 2").is_err());
        assert!(size("0xffffffffffffffff + 1").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,80}") {
            let _ = substitute(&text, &variables());
            let _ = compare(&text, &variables());
        }

        #[test]
        fn sums_agree_with_the_model(a: u32, b: u32, c: u32) {
            let (x, y, z) = (i128::from(a), i128::from(b), i128::from(c));
            let none = Variables::new();
            prop_assert_eq!(evaluate(&format!("{a}+{b}*{c}"), &none), Ok(x + y * z));
            prop_assert_eq!(evaluate(&format!("({a}-{b})*{c}"), &none), Ok((x - y) * z));
        }
    }
}
