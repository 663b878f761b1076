//! A table of two columns in groups, in a frame.

use std::fmt::Write;

/// The widest a table may be, frame included.
pub(super) const WIDTH: usize = 100;

/// Two columns in groups. `None` stands for a rule between groups.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<Option<(String, String)>>,
}

impl Table {
    pub(super) fn row(&mut self, label: &str, value: impl Into<String>) {
        self.rows.push(Some((label.to_owned(), value.into())));
    }

    pub(super) fn rule(&mut self) {
        if self.rows.last().is_some_and(Option::is_some) {
            self.rows.push(None);
        }
    }

    pub(super) fn to_text(&self, title: &str) -> String {
        let cells = || self.rows.iter().flatten();
        let left = cells()
            .map(|(label, _)| label.chars().count())
            .max()
            .unwrap_or(0);
        // Frame and blanks take seven columns.
        let most = WIDTH - 7 - left;
        let right = cells()
            .map(|(_, value)| value.chars().count())
            .max()
            .unwrap_or(0);
        let right = right.max(title.chars().count()).min(most);
        let bar = |a, b, c| {
            format!(
                "{a}{}{b}{}{c}\n",
                "─".repeat(left + 2),
                "─".repeat(right + 2)
            )
        };
        let mut text = bar('┌', '┬', '┐');
        let _ = writeln!(text, "│ {:<left$} │ {title:<right$} │", "");
        text += &bar('├', '┼', '┤');
        let rows = match self.rows.split_last() {
            Some((None, rows)) => rows,
            _ => &self.rows,
        };
        for row in rows {
            let Some((label, value)) = row else {
                text += &bar('├', '┼', '┤');
                continue;
            };
            let mut label = label.as_str();
            for part in wrap(value, right) {
                let _ = writeln!(text, "│ {label:<left$} │ {part:<right$} │");
                label = "";
            }
        }
        text + &bar('└', '┴', '┘')
    }
}

/// Breaks a text at blanks into parts of at most `width` characters, and a word that is longer
/// within itself.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let length = |text: &str| text.trim_end().chars().count();
    let mut parts = Vec::new();
    let mut part = String::new();
    for word in text.split_inclusive(' ') {
        if !part.is_empty() && part.chars().count() + length(word) > width {
            parts.push(std::mem::take(&mut part).trim_end().to_owned());
        }
        part.push_str(word);
        while width > 0 && length(&part) > width {
            parts.push(part.chars().take(width).collect());
            part = part.chars().skip(width).collect();
        }
    }
    parts.push(part.trim_end().to_owned());
    parts
}
