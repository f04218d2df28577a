// Text that came from a file, made fit for one line of a message.
#pragma once

#include <string>
#include <string_view>

namespace kvik {

// Whether the bytes are well-formed UTF-8 (no overlong forms, no surrogates).
bool is_utf8(std::string_view text) noexcept;

// 'text' in single quotes: control characters, quotes, backslashes and bytes that are not UTF-8 are
// escaped, and what exceeds `limit` bytes is cut with "...". The result is valid UTF-8.
std::string quote(std::string_view text, std::size_t limit = 120);

// The text as it stands where nobody could misread it (no spaces, quotes, or what quote() escapes),
// else quote(text).
std::string bare(std::string_view text, std::size_t limit = 120);

}  // namespace kvik
