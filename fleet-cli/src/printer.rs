//! What people and scripts see: tables, JSON, JSON lines.
//!
//! # Rules
//! * Results go to stdout, progress and errors to stderr.
//! * Colour and progress only on a terminal; `NO_COLOR` switches colour off.
//! * Nothing that came from outside reaches a terminal with control characters in it.

use std::io::{IsTerminal, Write};

use serde_json::Value;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people with wide terminals.
    Wide,
    /// One document.
    Json,
    /// One document per line.
    Jsonl,
}

/// A column of a table: its title, and the key of the value in each row.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    key: &'static str,
    is_wide: bool,
}

/// A column that is always shown.
pub const fn column(title: &'static str, key: &'static str) -> Column {
    Column {
        title,
        key,
        is_wide: false,
    }
}

/// A column of `-o wide`.
pub const fn wide(title: &'static str, key: &'static str) -> Column {
    Column {
        title,
        key,
        is_wide: true,
    }
}

/// Writes results in one format.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    format: Format,
    has_colour: bool,
    is_live: bool,
}

impl Printer {
    /// For this process's stdout and stderr.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let has_colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            format,
            has_colour,
            is_live: std::io::stderr().is_terminal(),
        }
    }

    /// Whether scripts read the results.
    #[must_use]
    pub fn is_json(&self) -> bool {
        matches!(self.format, Format::Json | Format::Jsonl)
    }

    /// Whether stderr is a terminal on which a line may be rewritten.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.is_live && !self.is_json()
    }

    /// Writes rows.
    pub fn rows(&self, columns: &[Column], rows: &[Value]) {
        match self.format {
            Format::Json => self.line(&serde_json::to_string_pretty(rows).unwrap_or_default()),
            Format::Jsonl => rows.iter().for_each(|row| self.line(&row.to_string())),
            Format::Table | Format::Wide => {
                let shown: Vec<Column> = columns
                    .iter()
                    .copied()
                    .filter(|c| !c.is_wide || self.format == Format::Wide)
                    .collect();
                self.line(render_table(&shown, rows, self.has_colour).trim_end());
            }
        }
    }

    /// Writes one object; for people as lines of name and value.
    pub fn object(&self, value: &Value) {
        match self.format {
            Format::Json => self.line(&serde_json::to_string_pretty(value).unwrap_or_default()),
            Format::Jsonl => self.line(&value.to_string()),
            Format::Table | Format::Wide => self.line(render_object(value, self.has_colour).trim_end()),
        }
    }

    /// Writes one object as one line, for streams.
    pub fn event(&self, value: &Value, text: &str) {
        if self.is_json() {
            self.line(&value.to_string());
        } else {
            self.line(text);
        }
    }

    /// Writes text for people; scripts do not see it.
    pub fn text(&self, text: &str) {
        if !self.is_json() {
            self.line(text);
        }
    }

    /// Writes progress for people to stderr.
    pub fn note(&self, text: &str) {
        if !self.is_json() {
            eprintln!("{text}");
        }
    }

    /// Writes one line to stdout. A reader that went away (`| head`) is no fault.
    pub fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
    }
}

/// A cell of a table: no control characters, `-` for nothing.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(fields) => {
            let parts: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name}={}", cell(value)))
                .collect();
            parts.join(" ")
        }
        other => other.to_string(),
    };
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

fn colour_of(word: &str) -> Option<&'static str> {
    match word {
        "completed" | "normal" | "up" | "running" | "ok" => Some("32"),
        "failed" | "unknown" | "read_only" | "down" | "FAILED" => Some("31"),
        "expired" | "canceled" | "island" | "catching_up" | "degraded" => Some("33"),
        _ => None,
    }
}

fn painted(text: &str, padded: String, has_colour: bool) -> String {
    match colour_of(text).filter(|_| has_colour) {
        Some(code) => format!("\u{1b}[{code}m{padded}\u{1b}[0m"),
        None => padded,
    }
}

fn render_table(columns: &[Column], rows: &[Value], has_colour: bool) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            columns
                .iter()
                .map(|c| cell(row.get(c.key).unwrap_or(&Value::Null)))
                .collect()
        })
        .collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, c)| {
            cells
                .iter()
                .map(|row| row[at].chars().count())
                .chain([c.title.len()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for (c, width) in columns.iter().zip(&widths) {
        out.push_str(&format!("{:<width$}  ", c.title));
    }
    out = format!("{}\n", out.trim_end());
    for row in &cells {
        let mut line = String::new();
        for (text, width) in row.iter().zip(&widths) {
            line.push_str(&painted(text, format!("{text:<width$}  "), has_colour));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn render_object(value: &Value, has_colour: bool) -> String {
    let Value::Object(fields) = value else {
        return cell(value);
    };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            let text = cell(value);
            format!("{name:<width$}  {}\n", painted(&text, text.clone(), has_colour))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn table_is_aligned_and_shows_a_dash_for_nothing() {
        let columns = [column("ID", "id"), column("STATE", "state")];
        let rows = [
            json!({"id": "t-1", "state": "queued"}),
            json!({"id": "t-22", "state": null}),
        ];
        assert_eq!(
            render_table(&columns, &rows, false),
            "ID    STATE\nt-1   queued\nt-22  -\n"
        );
    }

    #[test]
    fn what_came_from_outside_cannot_drive_a_terminal() {
        let text = render_table(&[column("KEY", "key")], &[json!({"key": "\u{1b}[2Jx\ny"})], false);
        assert!(!text.contains('\u{1b}') && text.lines().count() == 2, "{text:?}");
    }

    #[test]
    fn colour_only_where_it_is_wanted() {
        let rows = [json!({"s": "completed"})];
        assert!(render_table(&[column("S", "s")], &rows, true).contains("\u{1b}[32m"));
        assert!(!render_table(&[column("S", "s")], &rows, false).contains('\u{1b}'));
    }
}
