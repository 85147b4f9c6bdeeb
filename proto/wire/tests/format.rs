//! The wire format, as numbers. A change here is a change of what nodes of two versions say to each
//! other and of what stands on disks: numbers are added, never changed and never used again.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorSet, field_descriptor_proto::Label,
};
use std::fmt::Write;

fn message(out: &mut String, scope: &str, m: &DescriptorProto) {
    let name = format!("{scope}{}", m.name());
    writeln!(out, "message {name}").unwrap();
    let mut fields = m.field.clone();
    fields.sort_by_key(|f| f.number());
    for f in fields {
        let kind = match f.type_name() {
            "" => f
                .r#type()
                .as_str_name()
                .trim_start_matches("TYPE_")
                .to_lowercase(),
            name => name.trim_start_matches('.').to_owned(),
        };
        let repeated = if f.label() == Label::Repeated {
            "repeated "
        } else {
            ""
        };
        let oneof = f.oneof_index.map_or(String::new(), |i| {
            format!(" in {}", m.oneof_decl[usize::try_from(i).unwrap()].name())
        });
        writeln!(out, "  {} {} {repeated}{kind}{oneof}", f.number(), f.name()).unwrap();
    }
    for nested in &m.nested_type {
        message(out, &format!("{name}."), nested);
    }
    for e in &m.enum_type {
        enumeration(out, &format!("{name}."), e);
    }
}

fn enumeration(out: &mut String, scope: &str, e: &EnumDescriptorProto) {
    writeln!(out, "enum {scope}{}", e.name()).unwrap();
    for v in &e.value {
        writeln!(out, "  {} {}", v.number(), v.name()).unwrap();
    }
}

#[test]
fn numbers_and_types_stay() {
    let set = FileDescriptorSet::decode(sealane_wire::DESCRIPTORS).unwrap();
    let mut out = String::new();
    for file in set.file.iter().filter(|f| f.package() == "sealane.v1") {
        for m in &file.message_type {
            message(&mut out, "", m);
        }
        for e in &file.enum_type {
            enumeration(&mut out, "", e);
        }
        for s in &file.service {
            for m in &s.method {
                let stream = |on: bool| if on { "stream " } else { "" };
                writeln!(
                    out,
                    "rpc {}/{} {}{} -> {}{}",
                    s.name(),
                    m.name(),
                    stream(m.client_streaming()),
                    m.input_type().rsplit('.').next().unwrap(),
                    stream(m.server_streaming()),
                    m.output_type().rsplit('.').next().unwrap(),
                )
                .unwrap();
            }
        }
    }
    insta::assert_snapshot!(out);
}
