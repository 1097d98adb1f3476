//! A page: its blocks of code with what the tests do with them, its headings and its links.

use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::read;

/// A Markdown file of the repository.
pub(crate) struct Page {
    /// The path in the repository.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) parts: Vec<Part>,
    /// The anchors of the headings.
    pub(crate) anchors: Vec<String>,
    pub(crate) links: Vec<Link>,
    /// The texts between backticks.
    pub(crate) spans: Vec<String>,
    /// What is wrong with the page itself.
    pub(crate) faults: Vec<String>,
}

/// What a walk through the page meets, in this order.
pub(crate) enum Part {
    /// A sentence that [`crate::setup`] understands.
    Setup(String),
    Block(Block),
}

/// A block of code.
#[derive(Clone)]
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
    /// The line of its first character, counted from 1.
    pub(crate) line: usize,
    /// Where its text is in the file.
    pub(crate) range: Range<usize>,
    pub(crate) marker: Option<Marker>,
}

/// What the tests do with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Marker {
    NotRun(String),
    NotCompared(String),
    On(String),
    FileOn(Vec<String>),
}

pub(crate) struct Link {
    pub(crate) target: String,
    pub(crate) line: usize,
}

enum Comment {
    Setup(String),
    Marker(Marker),
    Unknown,
}

/// The part of a page that is being read.
#[derive(Default)]
enum Inside {
    #[default]
    Nothing,
    Comment(String),
    Heading(String),
    Block(Block),
}

impl Page {
    pub(crate) fn read(path: &str) -> Self {
        Self::new(path, read(path))
    }

    pub(crate) fn new(path: &str, text: String) -> Self {
        let mut page = Self {
            path: path.to_owned(),
            text: String::new(),
            parts: Vec::new(),
            anchors: Vec::new(),
            links: Vec::new(),
            spans: Vec::new(),
            faults: Vec::new(),
        };
        let mut inside = Inside::Nothing;
        let mut marker = None;
        for (event, range) in Parser::new_ext(&text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = line_of(&text, range.start);
            inside = page.next(event, range, line, inside, &mut marker);
        }
        page.text = text;
        page
    }

    /// The blocks of the page.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.parts.iter().filter_map(|part| match part {
            Part::Block(block) => Some(block),
            Part::Setup(_) => None,
        })
    }

    fn next(
        &mut self,
        event: Event<'_>,
        range: Range<usize>,
        line: usize,
        inside: Inside,
        marker: &mut Option<Marker>,
    ) -> Inside {
        match (event, inside) {
            (Event::Start(Tag::HtmlBlock), _) => Inside::Comment(String::new()),
            (Event::Html(html), Inside::Comment(text)) => Inside::Comment(text + &html),
            (Event::End(TagEnd::HtmlBlock), Inside::Comment(text)) => {
                match comment(&text) {
                    Comment::Setup(sentence) => self.parts.push(Part::Setup(sentence)),
                    Comment::Marker(found) => *marker = Some(found),
                    Comment::Unknown => self.fault(line, &format!("unknown comment {text:?}")),
                }
                Inside::Nothing
            }
            (Event::Start(Tag::CodeBlock(kind)), _) => {
                let language = match kind {
                    CodeBlockKind::Fenced(language) => language.to_string(),
                    // The documents outside the book have no other blocks.
                    CodeBlockKind::Indented if !self.path.contains('/') => "sh".to_owned(),
                    CodeBlockKind::Indented => {
                        self.fault(line, "an indented block: fence it, and name its language");
                        return Inside::Nothing;
                    }
                };
                Inside::Block(Block {
                    language,
                    text: String::new(),
                    line: line + 1,
                    range: 0..0,
                    marker: marker.take(),
                })
            }
            (Event::Text(text), Inside::Block(mut block)) => {
                if block.text.is_empty() {
                    block.range = range.clone();
                }
                block.range.end = range.end;
                block.text.push_str(&text);
                Inside::Block(block)
            }
            (Event::End(TagEnd::CodeBlock), Inside::Block(block)) => {
                self.parts.push(Part::Block(block));
                Inside::Nothing
            }
            (Event::Start(Tag::Heading { .. }), _) => Inside::Heading(String::new()),
            (Event::Text(text) | Event::Code(text), Inside::Heading(heading)) => {
                Inside::Heading(heading + &text)
            }
            (Event::End(TagEnd::Heading(_)), Inside::Heading(heading)) => {
                self.anchors.push(anchor(&heading));
                Inside::Nothing
            }
            (event, inside) => {
                match event {
                    Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                        let target = dest_url.to_string();
                        self.links.push(Link { target, line });
                    }
                    Event::Code(text) => self.spans.push(text.to_string()),
                    Event::InlineHtml(html) => {
                        self.fault(line, &format!("{html} is HTML, which a book does not show"));
                    }
                    Event::Start(Tag::Paragraph) if marker.is_some() => {
                        self.fault(line, "a comment for a block stands before a paragraph");
                        *marker = None;
                    }
                    _ => {}
                }
                inside
            }
        }
    }

    fn fault(&mut self, line: usize, what: &str) {
        self.faults.push(format!("{}:{line}: {what}", self.path));
    }
}

fn comment(html: &str) -> Comment {
    let text = html.trim();
    let inner = text
        .strip_prefix("<!--")
        .and_then(|text| text.strip_suffix("-->"));
    let Some((word, rest)) = inner.and_then(|text| text.split_once(':')) else {
        return Comment::Unknown;
    };
    let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
    match word.trim() {
        "setup" => Comment::Setup(rest),
        "not run" => Comment::Marker(Marker::NotRun(rest)),
        "not compared" => Comment::Marker(Marker::NotCompared(rest)),
        "on" => Comment::Marker(Marker::On(rest)),
        "file on" => Comment::Marker(Marker::FileOn(
            rest.split(", ").map(str::to_owned).collect(),
        )),
        _ => Comment::Unknown,
    }
}

/// The anchor of a heading, as mdBook and code hosts make it.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[test]
fn a_page_is_read_with_its_markers() {
    let text = "# A `b` c!\n\n<!-- setup: a mesh -->\n\n<!-- on: web-1 -->\n```sh\nls\n```\n\n[x](y.md#z) `meshctl status` <p>\n\n    indented\n\n<!-- nonsense -->\n";
    let page = Page::new("docs/p.md", text.to_owned());
    assert_eq!(page.anchors, ["a-b-c"]);
    assert_eq!(page.links[0].target, "y.md#z");
    assert_eq!(page.spans, ["meshctl status"]);
    assert!(matches!(&page.parts[0], Part::Setup(text) if text == "a mesh"));
    let block = page.blocks().next().expect("a block");
    assert_eq!((block.language.as_str(), block.line), ("sh", 7));
    assert_eq!(&text[block.range.clone()], "ls\n");
    assert_eq!(block.marker, Some(Marker::On("web-1".into())));
    assert_eq!(page.faults.len(), 3, "{:?}", page.faults);
}
