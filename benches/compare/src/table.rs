//! A table as aligned text or as Markdown.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Text,
    Markdown,
}

impl Style {
    pub fn title(self, title: &str) -> String {
        match self {
            Self::Text => title.to_owned(),
            Self::Markdown => format!("**{title}**"),
        }
    }

    pub fn item(self, text: &str) -> String {
        match self {
            Self::Text => text.to_owned(),
            Self::Markdown => format!("- {text}"),
        }
    }
}

/// The first row is the heading; the first column is left-aligned, the others right. A column that is empty all the
/// way down is left out.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<'a>(headings: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rows: vec![headings.into_iter().map(str::to_owned).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn print(&self, style: Style) -> String {
        let columns: Vec<usize> = (0..self.rows[0].len())
            .filter(|&column| self.rows[1..].iter().any(|row| !row[column].is_empty()))
            .collect();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells = columns.iter().map(|&column| match column {
                0 => format!("{:<1$}", row[column], width(column)),
                _ => format!("{:>1$}", row[column], width(column)),
            });
            let cells: Vec<String> = cells.collect();
            match style {
                Style::Text => text.push_str(cells.join("  ").trim_end()),
                Style::Markdown => text.extend(["| ", &cells.join(" | "), " |"]),
            }
            text.push('\n');
            if index == 0 && style == Style::Markdown {
                let rules = columns.iter().map(|&column| match column {
                    0 => "-".repeat(width(column)),
                    _ => format!("{}:", "-".repeat(width(column) - 1)),
                });
                text.extend(["| ", &rules.collect::<Vec<_>>().join(" | "), " |\n"]);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(["peer", "µs", "empty"]);
        table.row(["a".to_owned(), "1.0".to_owned(), String::new()]);
        table.row(["longer".to_owned(), "10.0".to_owned(), String::new()]);
        table
    }

    #[test]
    fn text_is_aligned_by_characters() {
        assert_eq!(sample().print(Style::Text), "peer      µs\na        1.0\nlonger  10.0\n");
    }

    #[test]
    fn markdown_has_a_rule_under_the_heading() {
        let expected = "| peer   |   µs |\n| ------ | ---: |\n| a      |  1.0 |\n| longer | 10.0 |\n";
        assert_eq!(sample().print(Style::Markdown), expected);
    }
}
