// A strict reader of JSON (RFC 8259): one document, nothing after it, no comments, no NaN.
//
// Strings keep their bytes; escapes become UTF-8, and half a surrogate pair is an error. The last
// of two members of one name counts, as in Python.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ssm_runner {

// What is wrong with a document or with what is asked of it.
class JsonError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

class Json {
public:
    enum class Kind { null, boolean, integer, real, string, array, object };
    struct Member;

    static Json parse(std::string_view text);

    Kind kind = Kind::null;
    bool boolean = false;
    int64_t integer = 0;  // of an integer that fits
    double real = 0;      // of every number
    std::string string;
    std::vector<Json> items;
    std::vector<Member> members;

    // The member of an object, null where it has none of this name.
    Json const* find(std::string_view name) const;
    // The same, where it has to be there.
    Json const& at(std::string_view name) const;
    // The value as a type; `name` is what a message calls it.
    std::string const& as_string(std::string_view name) const {
        return of(Kind::string, name).string;
    }
    int64_t as_integer(std::string_view name) const { return of(Kind::integer, name).integer; }
    bool as_boolean(std::string_view name) const { return of(Kind::boolean, name).boolean; }
    std::vector<Json> const& as_array(std::string_view name) const {
        return of(Kind::array, name).items;
    }
    double as_number(std::string_view name) const {
        return kind == Kind::integer ? real : of(Kind::real, name).real;
    }

private:
    Json const& of(Kind wanted, std::string_view name) const;
};

struct Json::Member {
    std::string name;
    Json value;
};

}  // namespace ssm_runner
