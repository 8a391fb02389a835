/* A QEMU plugin that counts what an ARM program executes between two calls of getpgid().
 *
 * At each such call a line goes to the file that the argument out=FILE names: instructions since the call before, and
 * lanes of floating-point NEON multiply-adds among them (two lanes in a 64-bit register, four in a 128-bit one).
 * Instructions are counted when their block of code is entered; an ARM block runs to its end unless the program takes
 * a fault. One guest thread only.
 *
 * The prototypes are QEMU's plugin interface in its version 1 (QEMU 6 to 8), of which Debian ships no header.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define ARM_GETPGID 132

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *instruction);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*call)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*call)(unsigned, void *), int flags,
                                          void *argument);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id,
                                          void (*call)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                       uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

EXPORT int qemu_plugin_version = 1;

struct block {
    uint32_t instructions;
    uint32_t lanes;
};

static uint64_t instructions, lanes;
static FILE *out;

/* How many lanes a NEON instruction in the A32 encoding multiplies and adds in fp32.
 * Source: ARM Architecture Reference Manual ARMv7-A, A7.4 and A8.8.336 (VFMA), A8.8.337 and A8.8.338 (VMLA, VMLS). */
static uint32_t multiply_add_lanes(uint32_t word) {
    if ((word & 0xfe000000u) != 0xf2000000u) return 0;
    uint32_t operation = word >> 8 & 15, unsigned_or_wide = word >> 24 & 1, six = word >> 6 & 1, four = word >> 4 & 1;
    if (!(word >> 23 & 1)) { /* three registers of the same length: VFMA, VFMS, VMLA, VMLS */
        if (unsigned_or_wide || !four || (operation != 12 && operation != 13)) return 0;
        if (operation == 12 && (word >> 20 & 1)) return 0;
        return six ? 4 : 2;
    }
    /* two registers and a scalar: VMLA, VMLS */
    if ((word >> 20 & 3) == 3 || !six || four || (operation != 1 && operation != 5)) return 0;
    return unsigned_or_wide ? 4 : 2;
}

/* The same of a T32 instruction, whose NEON encodings have other top bits and its halves the other way round. */
static uint32_t thumb_multiply_add_lanes(uint32_t word) {
    word = word << 16 | word >> 16;
    if ((word & 0xef000000u) != 0xef000000u) return 0;
    return multiply_add_lanes(0xf2000000u | (word >> 28 & 1) << 24 | (word & 0x00ffffffu));
}

static void on_executed(unsigned cpu, void *argument) {
    const struct block *block = argument;
    (void)cpu;
    instructions += block->instructions;
    lanes += block->lanes;
}

static void on_translated(plugin_id id, struct qemu_plugin_tb *translated) {
    struct block *block = calloc(1, sizeof *block); /* lives as long as QEMU keeps the translation: to the end */
    (void)id;
    if (!block) abort();
    block->instructions = (uint32_t)qemu_plugin_tb_n_insns(translated);
    for (size_t index = 0; index < block->instructions; index++) {
        const struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(translated, index);
        uint32_t word;
        if (qemu_plugin_insn_size(instruction) != sizeof word) continue;
        memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
        /* No word is a multiply-add in both encodings: read the wrong way round, its operation would have to be 15 (T32)
         * or 2 or 3 (A32). */
        uint32_t found = multiply_add_lanes(word);
        block->lanes += found ? found : thumb_multiply_add_lanes(word);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(translated, on_executed, 0, block);
}

static void on_system_call(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                           uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != ARM_GETPGID) return;
    fprintf(out, "%llu %llu\n", (unsigned long long)instructions, (unsigned long long)lanes);
    fflush(out);
    instructions = lanes = 0;
}

EXPORT int qemu_plugin_install(plugin_id id, const void *qemu, int count, char **arguments) {
    (void)qemu;
    if (count != 1 || strncmp(arguments[0], "out=", 4)) {
        fprintf(stderr, "counter: out=FILE is needed\n");
        return 1;
    }
    out = fopen(arguments[0] + 4, "w");
    if (!out) {
        perror(arguments[0] + 4);
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
