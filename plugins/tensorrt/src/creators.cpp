#include "creators.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <string>

#include "fields.h"
#include "logger.h"
#include "pack.h"
#include "plugin.h"
#include "text.h"

namespace ssm_export {
namespace {

using nvinfer1::TensorRTPhase;

// An engine says with which format it was written; one that this library cannot read is refused.
void check_engine_format(Fields const& fields) {
    int64_t const format = fields.integer(kEngineFormatField, 0);
    if (format != kEngineFormat) {
        fail("the engine was built with a plugin library of ",
             format == 0 ? std::string("another kind") : text("engine format ", format),
             ", this one reads format ", kEngineFormat,
             ": rebuild the engine, or load the library it was built with");
    }
}

// Those of the sections that were made for this operator and these attributes.
Sections fitting(Operator const& op, Fields const& fields, Sections const& sections,
                 std::string& reasons) {
    Sections found;
    for (auto const& section : sections) {
        std::string why;
        if (section->op != op.name) {
            why = text("they are kernels of ", section->op);
        } else if (std::find(op.versions.begin(), op.versions.end(), section->op_version) ==
                   op.versions.end()) {
            why = text("they are kernels of version ", section->op_version,
                       " of the operator, this library knows version ", op.versions.back());
        } else {
            why = fields.contradiction(*section);
        }
        if (why.empty()) {
            found.push_back(section);
        } else if (section->op == op.name || reasons.empty()) {
            reasons = why;
        }
    }
    return found;
}

Sections find_kernels(Operator const& op, Fields const& fields, TensorRTPhase phase) {
    std::string_view const given = fields.bytes(kKernelsField);
    bool const carried = given.find_first_not_of('\0') != std::string_view::npos;
    if (phase == TensorRTPhase::kRUNTIME) {
        check_engine_format(fields);
        if (!carried) {
            fail("the engine holds no kernels for it");
        }
    }
    std::string reasons;
    if (carried) {
        auto found = fitting(op, fields, read_sections(given, "its kernels"), reasons);
        if (found.empty()) {
            fail(reasons);
        }
        return found;
    }
    std::string const path = pack_path();
    Sections const pack = read_pack(path);
    auto found = fitting(op, fields, pack, reasons);
    if (found.empty()) {
        fail("the node carries no kernels, and ",
             pack.empty() ? text("there is no file ", path)
                          : text("none in ", path, " were made for it (", reasons, ")"),
             ". Make them: ssm-export kernels GRAPH.onnx --target T -o kernels.ssmk, and name the "
             "file in SSM_EXPORT_KERNELS or put it beside the library");
    }
    return found;
}

}  // namespace

Creator::Creator(Operator const& op) : op_(op) {
    for (char const* const attribute : op.attributes) {
        fields_.emplace_back(attribute);
    }
    fields_.emplace_back(kKernelsField);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(char const* name,
                                           nvinfer1::PluginFieldCollection const* fields,
                                           TensorRTPhase phase) noexcept {
    try {
        std::string with;
        try {
            Fields const given(fields);
            with = text(op_.name, " '", name == nullptr ? "" : name, "' with ", given.show());
            report(Severity::kVERBOSE, text("ssm_export creates ", with));
            return std::make_unique<Plugin>(op_, name == nullptr ? "" : name,
                                            find_kernels(op_, given, phase)).release();
        } catch (std::exception const& error) {
            report(Severity::kERROR, text("ssm_export cannot create ",
                                          with.empty() ? op_.name : with, ": ", error.what()));
        }
    } catch (...) {
        report(Severity::kERROR, "ssm_export: an error could not be reported");
    }
    return nullptr;
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept { return &collection_; }
char const* Creator::getPluginName() const noexcept { return op_.name; }
char const* Creator::getPluginVersion() const noexcept { return kPluginVersion; }
char const* Creator::getPluginNamespace() const noexcept { return op_.plugin_namespace; }

std::vector<nvinfer1::IPluginCreatorInterface*> const& creators() {
    static std::vector<std::unique_ptr<Creator>> const owned = [] {
        std::vector<std::unique_ptr<Creator>> made;
        for (Operator const& op : operators()) {
            made.push_back(std::make_unique<Creator>(op));
        }
        return made;
    }();
    static std::vector<nvinfer1::IPluginCreatorInterface*> const all = [] {
        std::vector<nvinfer1::IPluginCreatorInterface*> made;
        for (auto const& one : owned) {
            made.push_back(one.get());
        }
        return made;
    }();
    return all;
}

}  // namespace ssm_export
