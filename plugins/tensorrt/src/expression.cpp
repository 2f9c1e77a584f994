#include "expression.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "text.h"

namespace ssm_export {
namespace {

constexpr size_t kMaxDepth = 32;
constexpr std::array<std::string_view, 11> kOperations{
    "add", "sub", "mul", "div", "cdiv", "min", "max", "lt", "le", "eq", "and"};
enum Operation { kAdd, kSub, kMul, kDiv, kCdiv, kMin, kMax, kLt, kLe, kEq, kAnd };

int64_t floor_div(int64_t a, int64_t b, std::string const& source) {
    if (b <= 0) {
        fail("expression '", source, "' divides by ", b);
    }
    int64_t const quotient = a / b;
    return (a % b < 0) ? quotient - 1 : quotient;
}

int64_t apply(int64_t operation, int64_t a, int64_t b, std::string const& source) {
    int64_t out = 0;
    bool overflow = false;
    switch (operation) {
    case kAdd: overflow = __builtin_add_overflow(a, b, &out); break;
    case kSub: overflow = __builtin_sub_overflow(a, b, &out); break;
    case kMul: overflow = __builtin_mul_overflow(a, b, &out); break;
    case kDiv: out = floor_div(a, b, source); break;
    case kCdiv: out = floor_div(a, b, source) + (a % b != 0 ? 1 : 0); break;
    case kMin: out = std::min(a, b); break;
    case kMax: out = std::max(a, b); break;
    case kLt: out = a < b; break;
    case kLe: out = a <= b; break;
    case kEq: out = a == b; break;
    default: out = (a != 0 && b != 0); break;
    }
    if (overflow) {
        fail("expression '", source, "' does not fit 64 bits");
    }
    return out;
}

}  // namespace

Expression Expression::parse(std::string_view tokens, std::vector<std::string> const& symbols) {
    Expression made;
    made.source_ = std::string(tokens);
    size_t depth = 0;
    while (!tokens.empty()) {
        size_t const end = std::min(tokens.find(' '), tokens.size());
        std::string_view const word = tokens.substr(0, end);
        tokens.remove_prefix(std::min(end + 1, tokens.size()));
        auto const operation = std::find(kOperations.begin(), kOperations.end(), word);
        auto const symbol = std::find(symbols.begin(), symbols.end(), word);
        int64_t number = 0;
        auto const [stop, error] =
            std::from_chars(word.data(), word.data() + word.size(), number);
        if (operation != kOperations.end()) {
            if (depth < 2) {
                fail("expression '", made.source_, "': '", word, "' lacks an operand");
            }
            --depth;
            made.tokens_.push_back({Kind::kOperation, operation - kOperations.begin()});
            continue;
        }
        if (symbol != symbols.end()) {
            made.tokens_.push_back({Kind::kSymbol, symbol - symbols.begin()});
        } else if (!word.empty() && error == std::errc() && stop == word.data() + word.size()) {
            made.tokens_.push_back({Kind::kNumber, number});
        } else {
            fail("expression '", made.source_, "': '", word, "' is no number, size or operation");
        }
        if (++depth > kMaxDepth) {
            fail("expression '", made.source_, "' is nested too deeply");
        }
    }
    if (depth != 1) {
        fail("expression '", made.source_, "' leaves ", depth, " values, not one");
    }
    return made;
}

int64_t Expression::value(Sizes const& sizes) const {
    std::array<int64_t, kMaxDepth> stack{};
    size_t depth = 0;
    for (Token const& token : tokens_) {
        if (token.kind == Kind::kOperation) {
            --depth;
            stack[depth - 1] = apply(token.number, stack[depth - 1], stack[depth], source_);
        } else {
            bool const number = token.kind == Kind::kNumber;
            stack[depth++] = number ? token.number : sizes.at(static_cast<size_t>(token.number));
        }
    }
    return stack[0];
}

}  // namespace ssm_export
