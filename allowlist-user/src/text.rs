//! Text that somebody else wrote, in lines of this program's. Pure.

/// The text with a `?` for each control character, so that it neither ends its line nor tells a terminal anything.
pub fn on_one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Lines of which only the first begins where lines do: of what is told of, none looks like the next thing.
pub fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(on_one_line).collect();
    lines.join("\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_line() {
        assert_eq!(on_one_line("a\nb\x1b[31mc\tä"), "a?b?[31mc?ä");
        assert_eq!(
            indented("one\n2026-11-29  root\r\nlast\x07"),
            "one\n    2026-11-29  root\n    last?"
        );
    }
}
