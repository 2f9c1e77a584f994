// Integer expressions over the sizes of a call, in postfix form: `T 64 cdiv B mul`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ssm_export {

// One size per symbol, in the order of the symbols' names that an expression was parsed with.
using Sizes = std::vector<int64_t>;

class Expression {
public:
    Expression() = default;

    // Reads tokens between blanks. Throws Error: an unknown token, or too few or many operands.
    static Expression parse(std::string_view tokens, std::vector<std::string> const& symbols);

    // The value. Throws Error: it does not fit 64 bits, or a divisor is not positive.
    int64_t value(Sizes const& sizes) const;

    std::string const& source() const { return source_; }

private:
    enum class Kind : uint8_t { kNumber, kSymbol, kOperation };
    struct Token {
        Kind kind;
        int64_t number;  // the number, the symbol's index, or the operation's
    };
    std::vector<Token> tokens_;
    std::string source_;
};

}  // namespace ssm_export
