#include "base/text.h"

namespace kvik {

namespace {

// Length of the well-formed UTF-8 sequence that `text` starts with, or 0.
std::size_t sequence_length(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  std::size_t length = 0;
  unsigned low = 0x80, high = 0xBF;  // allowed range of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // overlong
    if (lead == 0xED) high = 0x9F;  // surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;  // above U+10FFFF
  }
  if (length == 0 || text.size() < length) return 0;
  if (byte(1) < low || byte(1) > high) return 0;
  for (std::size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) return 0;
  }
  return length;
}

void append_escaped(std::string& out, unsigned char byte) {
  constexpr char kHex[] = "0123456789abcdef";
  out += "\\x";
  out += kHex[byte >> 4];
  out += kHex[byte & 15];
}

}  // namespace

bool is_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const std::size_t length = sequence_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string quote(std::string_view text, std::size_t limit) {
  std::string out = "'";
  while (!text.empty()) {
    if (out.size() > limit) {
      out += "...";
      break;
    }
    const std::size_t length = sequence_length(text);
    const auto first = static_cast<unsigned char>(text[0]);
    if (length == 0 || first < 0x20 || first == 0x7F) {
      append_escaped(out, first);
      text.remove_prefix(1);
      continue;
    }
    if (first == '\'' || first == '\\') out += '\\';
    out += text.substr(0, length);
    text.remove_prefix(length);
  }
  return out + "'";
}

std::string bare(std::string_view text, std::size_t limit) {
  const bool ambiguous = text.empty() || text.find_first_of(" ,()={}'\\") != std::string_view::npos;
  std::string quoted = quote(text, limit);
  if (ambiguous || quoted.size() != text.size() + 2) return quoted;
  return std::string(text);
}

}  // namespace kvik
