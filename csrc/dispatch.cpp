#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(NCA_X86)
#include <cpuid.h>
#elif defined(NCA_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(NCA_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace nca {

namespace baseline {
extern const Kernels kernels;
}
#if defined(NCA_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif
#if defined(NCA_ARM64)
namespace neon {
extern const Kernels kernels;
}
namespace neon_half {
extern const Kernels kernels;
}
#endif

namespace {

#if defined(NCA_X86)

// Bits of XCR0: the registers that the operating system saves when it switches between processes. A CPU that
// has AVX under a system that does not save its registers must not use it.
constexpr unsigned kSavesYmm = 0x6;  // SSE, AVX
constexpr unsigned kSavesZmm = 0xe6; // and opmask, upper halves, upper sixteen

unsigned saved_registers() {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// What CPUID says of features and of extended ones, 0 where it says nothing.
struct Features {
    unsigned features = 0, extended = 0;

    static Features of_this_cpu() {
        unsigned a, b, c, d;
        Features found;
        if (__get_cpuid(1, &a, &b, &c, &d))
            found.features = c;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
            found.extended = b;
        return found;
    }
};

bool has(unsigned value, unsigned bits) {
    return (value & bits) == bits;
}

// `saved` is called where the CPU has the instruction that it takes.
template <class Saved>
void add_x86(const Features& cpu, const Saved& saved, std::vector<const Kernels*>& found) {
    if (!has(cpu.features, bit_OSXSAVE | bit_AVX | bit_FMA) || !has(cpu.extended, bit_AVX2))
        return;
    const unsigned registers = saved();
    if (!has(registers, kSavesYmm))
        return;
    found.push_back(&avx2::kernels);
    if (has(cpu.extended, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL) &&
        has(registers, kSavesZmm))
        found.push_back(&avx512::kernels);
}

#endif

#if defined(NCA_ARM64)

// Arithmetic on vectors of half precision. Elsewhere than on Linux and macOS nobody is asked.
bool has_half() {
#if defined(__linux__)
    constexpr unsigned long kAsimdHp = 1ul << 10; // HWCAP_ASIMDHP, which <asm/hwcap.h> may not have
    return getauxval(AT_HWCAP) & kAsimdHp;
#elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname("hw.optional.neon_fp16", &value, &size, nullptr, 0) && value;
#else
    return false;
#endif
}

#endif

// The named table, or the fastest where the name is empty.
const Kernels& find_kernels(const std::string& name, const char* asked_by) {
    if (name.empty())
        return *available_kernels().back();
    std::string names;
    for (const auto* tables : {&available_kernels(), &half_kernels()})
        for (const Kernels* table : *tables) {
            if (name == table->name)
                return *table;
            names += (names.empty() ? "" : ", ") + std::string(table->name);
        }
    throw std::invalid_argument(std::string(asked_by) + " is '" + name +
                                "'; this CPU and build have the instruction sets " + names);
}

std::atomic<const Kernels*> selected{nullptr};

} // namespace

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> tables = [] {
        std::vector<const Kernels*> found = {&baseline::kernels};
#if defined(NCA_X86)
        add_x86(Features::of_this_cpu(), saved_registers, found);
#elif defined(NCA_ARM64)
        found.push_back(&neon::kernels); // part of every AArch64
#endif
        return found;
    }();
    return tables;
}

const std::vector<const Kernels*>& half_kernels() {
    static const std::vector<const Kernels*> tables = [] {
        std::vector<const Kernels*> found;
#if defined(NCA_ARM64)
        if (has_half())
            found.push_back(&neon_half::kernels);
#endif
        return found;
    }();
    return tables;
}

std::vector<const Kernels*> x86_kernels([[maybe_unused]] unsigned features,
                                        [[maybe_unused]] unsigned extended, [[maybe_unused]] unsigned saved) {
    std::vector<const Kernels*> found;
#if defined(NCA_X86)
    found.push_back(&baseline::kernels);
    add_x86({features, extended}, [saved] { return saved; }, found);
#endif
    return found;
}

const Kernels& active_kernels() {
    const Kernels* table = selected.load();
    if (table)
        return *table;
    const char* wanted = std::getenv("PYNCA_ISA");
    const Kernels* chosen = &find_kernels(wanted ? wanted : "", "the environment variable PYNCA_ISA");
    // unless another thread has selected one meanwhile
    return selected.compare_exchange_strong(table, chosen) ? *chosen : *table;
}

void select_kernels(const std::string& name) {
    selected.store(&find_kernels(name, "the instruction set"));
}

} // namespace nca
